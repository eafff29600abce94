// SPDX-License-Identifier: BSD-3-Clause
#include "cli/resync.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <string_view>

#include "cli/wait.h"
#include "proto/control_client.h"

namespace pmirror::cli {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kCallTimeout{10000};
constexpr std::chrono::hours kLongest{24 * 30};  // the person can interrupt
constexpr int kBarCells = 30;

std::string Bar(const control::ReplicaStatus& replica) {
  const control::ResyncProgress& resync = replica.resync();
  const double share =
      resync.bytes() == 0
          ? 0
          : std::min(1.0, static_cast<double>(resync.bytes_compared()) / static_cast<double>(resync.bytes()));
  const auto cells = static_cast<size_t>(share * kBarCells);
  return fmt::format("{}: {} [{}{}] {:3.0f} %  {:.1f} MiB/s compared, {:.1f} MiB sent, {} of {} files",
                     replica.node(), resync.phase(), std::string(cells, '#'),
                     std::string(kBarCells - cells, '.'), 100 * share, resync.bytes_per_second() / (1 << 20),
                     static_cast<double>(resync.bytes_sent()) / (1 << 20), resync.files_done(),
                     resync.files());
}

// What stands in the way of replicas that no waiting brings back.
absl::Status Judge(const control::ReplicaStatus& replica) {
  if (replica.state() == "stale" || replica.state() == "failed") {
    return absl::FailedPreconditionError(
        fmt::format("{} is {}: {}", replica.node(), replica.state(), replica.reason()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Resync(const Endpoint& primary, const ResyncOrder& order) {
  proto::ControlClient client({primary.control});
  control::ResyncRequest request;
  request.set_volume(order.volume);
  request.set_node(order.node);
  request.set_full(order.full);
  if (const auto begun = client.Resync(request, kCallTimeout); !begun.ok()) {
    return begun.status();
  }
  const bool show = ::isatty(STDERR_FILENO) != 0;
  absl::Status result;
  const bool ended = WaitUntil(
      [&] {
        const absl::StatusOr<control::StatusReply> status = client.Status({}, kCallTimeout);
        result = status.status();
        if (!result.ok()) {
          return true;
        }
        bool all = true;
        std::string line;
        for (const control::VolumeStatus& volume : status->volumes()) {
          for (const control::ReplicaStatus& replica : volume.replicas()) {
            if (volume.name() != order.volume || (!order.node.empty() && replica.node() != order.node)) {
              continue;
            }
            result.Update(Judge(replica));
            all = all && replica.state() == "in-sync";
            line += replica.state() == "resyncing" ? Bar(replica) + "  " : "";
          }
        }
        if (show) {
          fmt::print(stderr, "\r\x1b[K{}", line);
        }
        return all || !result.ok();
      },
      kLongest);
  if (show) {
    fmt::print(stderr, "\r\x1b[K");
  }
  return ended ? result : absl::DeadlineExceededError("the resync has not ended");
}

}  // namespace pmirror::cli
