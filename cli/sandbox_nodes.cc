// SPDX-License-Identifier: BSD-3-Clause
// Processes of a sandbox's nodes.
#include "cli/sandbox_nodes.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "cli/outcome.h"
#include "cli/process.h"
#include "cli/wait.h"
#include "proto/control_client.h"

namespace pmirror::cli {
namespace {

namespace stdfs = std::filesystem;

constexpr std::chrono::seconds kStartTimeout{20};   // until a daemon answers
constexpr std::chrono::seconds kInSyncTimeout{45};  // until every replica is in sync
constexpr std::chrono::milliseconds kCallTimeout{2000};
constexpr size_t kLogLinesShown = 5;

std::string LastLines(const stdfs::path& log) {
  std::ifstream in(log);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    lines.push_back(line);
    if (lines.size() > kLogLinesShown) {
      lines.erase(lines.begin());
    }
  }
  return fmt::format("{}; the end of {}:\n{}", lines.empty() ? "it logged nothing" : "see its log",
                     log.string(), fmt::join(lines, "\n"));
}

// What is not in sync yet, as a sentence; empty when all is.
std::string NotInSync(const Sandbox& sandbox, const SandboxVolume& volume, proto::ControlClient& client) {
  const SandboxNode& primary = *sandbox.Node(volume.primary);
  const absl::StatusOr<control::StatusReply> reply = client.Status({}, kCallTimeout);
  if (!reply.ok()) {
    return std::string(Sentence(reply.status()));
  }
  for (const control::VolumeStatus& status : reply->volumes()) {
    if (status.name() != volume.name) {
      continue;
    }
    if (static_cast<size_t>(status.replicas_size()) + 1 < sandbox.nodes.size()) {
      return fmt::format("volume {}: not every replica is known to {}", volume.name, primary.name);
    }
    for (const control::ReplicaStatus& replica : status.replicas()) {
      if (replica.state() != "in-sync") {
        return fmt::format("volume {} on {} is {} {}", volume.name, replica.node(), replica.state(),
                           replica.reason());
      }
    }
    return "";
  }
  return fmt::format("{} does not know volume {}", primary.name, volume.name);
}

}  // namespace

absl::Status CheckConfig(const SandboxNode& node) {
  const absl::StatusOr<stdfs::path> binaries = BinaryDirectory();
  if (!binaries.ok()) {
    return binaries.status();
  }
  return RunTool({(*binaries / "pmirrord").string(), "--config", node.Config().string(), "--check"}).status();
}

absl::StatusOr<pid_t> StartNode(const Sandbox& sandbox, const SandboxNode& node) {
  const absl::StatusOr<stdfs::path> binaries = BinaryDirectory();
  if (!binaries.ok()) {
    return binaries.status();
  }
  DaemonToStart daemon;
  daemon.words = {(*binaries / "pmirrord").string(), "--config", node.Config().string()};
  daemon.log = node.Log();
  daemon.network_namespace = node.netns;
  daemon.environment = {sandbox.Marker(node)};
  return StartDaemon(daemon);
}

absl::Status WaitUntilItAnswers(const SandboxNode& node) {
  proto::ControlClient client({node.Control()});
  bool ended = false;
  const bool answered = WaitUntil(
      [&] {
        ended = ::waitpid(node.pid, nullptr, WNOHANG) == node.pid;
        return ended || client.Status({}, kCallTimeout).ok();
      },
      kStartTimeout);
  if (ended) {
    return absl::FailedPreconditionError(
        fmt::format("the daemon of {} ended at once; {}", node.name, LastLines(node.Log())));
  }
  return answered ? absl::OkStatus()
                  : absl::DeadlineExceededError(fmt::format("the daemon of {} does not answer; {}", node.name,
                                                            LastLines(node.Log())));
}

absl::Status WaitUntilInSync(const Sandbox& sandbox) {
  std::map<std::string, proto::ControlClient> clients;  // of each volume's primary
  for (const SandboxVolume& volume : sandbox.volumes) {
    clients.try_emplace(volume.name, std::vector<std::string>{sandbox.Node(volume.primary)->Control()});
  }
  std::string lacking;
  const bool in_sync = WaitUntil(
      [&] {
        for (const SandboxVolume& volume : sandbox.volumes) {
          lacking = NotInSync(sandbox, volume, clients.at(volume.name));
          if (!lacking.empty()) {
            return false;
          }
        }
        return true;
      },
      kInSyncTimeout);
  return in_sync ? absl::OkStatus()
                 : absl::DeadlineExceededError(fmt::format("after {} s: {}; {}", kInSyncTimeout.count(),
                                                           lacking, LastLines(sandbox.nodes.front().Log())));
}

absl::Status KillNode(const Sandbox& sandbox, const SandboxNode& node) {
  return KillAll([&] {
    std::vector<pid_t> found = ProcessesWithEnvironment(sandbox.Marker(node));
    if (!node.netns.empty()) {
      const std::vector<pid_t> inside = ProcessesInNamespace(node.netns);
      found.insert(found.end(), inside.begin(), inside.end());
    }
    return found;
  });
}

}  // namespace pmirror::cli
