// SPDX-License-Identifier: BSD-3-Clause
// One change of volumes at a time, whoever asks for it, and what is said of one that failed. Part of daemon.h.
#pragma once

#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/daemon.h"

namespace pmirror::server {

// One change at a time of the volumes that are primary here. Those that other nodes ask for need not wait: two nodes may ask each other.
class Daemon::Change {
 public:
  explicit Change(Daemon& daemon) : daemon_(daemon) {
    const std::lock_guard lock(daemon_.change_mutex_);
    taken_ = !std::exchange(daemon_.changing_, true);
  }
  ~Change() {
    if (taken_) {
      const std::lock_guard lock(daemon_.change_mutex_);
      daemon_.changing_ = false;
    }
  }
  Change(const Change&) = delete;
  Change& operator=(const Change&) = delete;
  bool taken() const { return taken_; }
  static absl::Status Busy() {
    return absl::UnavailableError("another change of volumes is under way; try again");
  }

 private:
  Daemon& daemon_;
  bool taken_ = false;
};

// Of a step that failed, and of what was to undo those before it.
inline absl::Status WithWhatIsLeft(const absl::Status& failure, const absl::Status& undone) {
  return undone.ok() ? failure
                     : absl::Status(failure.code(),
                                    absl::StrCat(failure.message(),
                                                 "; and not all could be undone: ", undone.message()));
}

}  // namespace pmirror::server
