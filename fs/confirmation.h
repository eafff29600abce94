// SPDX-License-Identifier: BSD-3-Clause
// Which blocks of a file every replica holds already, by checksums that have a place in the order of captures (docs/internals/resync.md,
// tests/model/confirm_test.cc): what a killed program may have stored to, and mostly has not, need not be sent.
//
// Thread-safe; any number of threads may ask about one file at once.
#pragma once

#include <chrono>
#include <span>

#include "fs/extent_set.h"
#include "fs/file_state.h"
#include "replication/data_session.h"
#include "replication/replicate.h"
#include "replication/volume_page.h"

namespace pmirror::fs {

// Bytes that one question is about: small enough that what comes behind it on the connection does not wait for long.
constexpr uint64_t kConfirmBytes = 512 << 10;
// A replica that is silent for longer gets the bytes: the caller has its own patience, and this is on top of it.
constexpr std::chrono::milliseconds kConfirmPatience{2000};

struct Confirmed {
  ExtentSet equal;
  uint64_t compared = 0;  // bytes that every replica has answered for
};

// Of `extents` the blocks of kConfirmBlock bytes that whoever syncs are sent to holds as they are here, which no older frame changes any more. Proven
// for the set that there was when it was called: when the set is another one afterwards, it says nothing. What is not in the answer is to be sent. It
// gives up when a replica is silent for `patience` or an eighth of the volume's deadline, trails, cannot be asked, or `observer` is
// interrupted; and leaves out what has other bytes, or a size that changes.
Confirmed ConfirmBlocks(FileState& file, const ExtentSet& extents, const VolumePage& page,
                        std::span<DataSession* const> sessions, SyncObserver& observer,
                        std::chrono::nanoseconds patience);

}  // namespace pmirror::fs
