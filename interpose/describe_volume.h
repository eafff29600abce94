// SPDX-License-Identifier: BSD-3-Clause
// What a volume page says, in the words of pmirror.h: the same for the preload library and for programs without it. No
// state; async-signal-safe.
#pragma once

#include "interpose/pmirror.h"
#include "replication/volume_page.h"

namespace pmirror::interpose {

// Bits of replicas.
struct ReplicaMasks {
  uint32_t members = 0;
  uint32_t trailing = 0;
  uint32_t unproven = 0;  // members that have still to be compared
};

// The pmirror_state of a volume that is in this VolumeState and has to have the `required` replicas (bit a replica).
pmirror_state StateOf(uint32_t state, const ReplicaMasks& masks, uint32_t required);

// Bytes that a flush group may have (flush.h).
constexpr uint32_t kGroupBytes = 16 << 10;

// How a mapping of the volume is carried.
enum class Carrier { kPreload, kMount };

// Fills all but volume, file and offset.
void DescribeVolume(const VolumePage& page, Carrier carrier, pmirror_attributes& out);

// Copies what fits: `to->size` bytes at most, and says so in `to->size`. False: `to` has no room for what every
// version has. Both structures begin with their size.
bool CopyOut(const void* from, size_t from_size, size_t least, void* to);

// At most `room` bytes with the NUL.
void CopyText(char* to, size_t room, const char* from);

}  // namespace pmirror::interpose
