// SPDX-License-Identifier: BSD-3-Clause
// What the files of libpmirror share: the preload library where it is loaded, and the local daemon for programs
// without it. Nothing here is async-signal-safe but Preload().
#pragma once

#include <array>
#include <cstddef>
#include <string>

#include "interpose/pmirror.h"
#include "interpose/preload_entry.h"
#include "replication/local_protocol.h"
#include "replication/unique_fd.h"
#include "replication/volume_page.h"

namespace pmirror::interpose {

// Null without the preload library, or when it found no daemon.
const PreloadTable* Preload();

// A volume page, mapped for reading.
class MappedPage {
 public:
  MappedPage() = default;
  explicit MappedPage(const UniqueFd& memory);
  MappedPage(MappedPage&& other) noexcept : page_(other.page_) { other.page_ = nullptr; }
  MappedPage& operator=(MappedPage&&) = delete;
  ~MappedPage();
  const VolumePage* get() const { return page_; }

 private:
  const VolumePage* page_ = nullptr;  // null: it could not be mapped, or is of another version
};

// What the daemon answers who observes it (local_protocol.h, kObserve).
struct Observation {
  UniqueFd socket;
  local::Reply reply;
  std::array<UniqueFd, local::kMaxVolumes> pages;  // by index of the reply's mounts
};

// Connects to the local daemon and asks to observe. `device`: of a mount (st_dev), whose daemon it is to be; 0: the one of
// the preload library, of PMIRROR_SOCKET, or of the first mount. 0 or an errno: ENOTCONN, there is none that could be
// asked; ENXIO, no mount of pmirror has that device.
int Observe(uint64_t device, Observation& observation);

}  // namespace pmirror::interpose
