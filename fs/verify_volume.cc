// SPDX-License-Identifier: BSD-3-Clause
// One recovery::Verify a replica, and its findings as messages.
#include "fs/verify_volume.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <chrono>
#include <utility>

#include "fs/remote_tree.h"
#include "recovery/local_tree.h"

namespace pmirror::fs {
namespace {

constexpr std::chrono::minutes kCallTimeout{5};
constexpr std::chrono::milliseconds kProgressPause{100};

void Add(const recovery::Difference& difference, const std::string& replica, control::Difference& message) {
  message.set_replica(replica);
  message.set_path(difference.path);
  message.set_what(recovery::Name(difference.what));
  message.set_offset(difference.extent.offset);
  message.set_length(difference.extent.length);
}

// Sends progress, but not more often than somebody can look at it.
class ProgressReporter {
 public:
  ProgressReporter(std::string replica, const std::function<bool(const control::VerifyProgress&)>& send)
      : replica_(std::move(replica)), send_(send) {}

  bool operator()(const char* phase, uint64_t done, uint64_t total) {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) {
      return true;
    }
    next_ = now + kProgressPause;
    control::VerifyProgress progress;
    progress.set_replica(replica_);
    progress.set_phase(phase);
    progress.set_done(done);
    progress.set_total(total);
    return send_(progress);
  }

 private:
  const std::string replica_;
  const std::function<bool(const control::VerifyProgress&)>& send_;
  std::chrono::steady_clock::time_point next_{};
};

}  // namespace

absl::Status VerifyVolume(const VolumeToVerify& volume, const std::vector<ReplicaToVerify>& replicas,
                          recovery::Freezer& freezer, const NoteVerdict& note,
                          const std::function<bool(const control::VerifyProgress&)>& send) {
  control::VerifyProgress verdict;
  for (const ReplicaToVerify& replica : replicas) {
    UniqueFd root(::open(volume.backing.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!root.valid()) {
      return absl::ErrnoToStatus(errno, fmt::format("cannot open the backing directory {}", volume.backing));
    }
    recovery::LocalTree original(std::move(root));
    proto::ControlClient client(replica.control);
    RemoteTree copy(client, volume.uuid, kCallTimeout);
    ProgressReporter reporter(replica.node, send);
    const absl::StatusOr<recovery::VerifyResult> result =
        recovery::Verify(original, copy, freezer, std::ref(reporter));
    if (!result.ok()) {
      return absl::Status(result.status().code(),
                          fmt::format("volume {} could not be compared with its copy on {}: {}", volume.name,
                                      replica.node, std::string(result.status().message())));
    }
    note(replica.node, *result);
    for (const recovery::Difference& difference : result->differences) {
      Add(difference, replica.node, *verdict.add_differences());
    }
    for (const recovery::Difference& difference : result->busy) {
      Add(difference, replica.node, *verdict.add_busy());
    }
    verdict.set_done(verdict.done() + result->bytes);
  }
  verdict.set_total(verdict.done());
  verdict.set_phase("done");
  verdict.set_finished(true);
  if (!send(verdict)) {
    return absl::CancelledError("the caller is gone");
  }
  return absl::OkStatus();
}

}  // namespace pmirror::fs
