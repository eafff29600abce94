// SPDX-License-Identifier: BSD-3-Clause
// The commands of the test bed.
#include "cli/sandbox.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>
#include <vector>

#include "cli/mounts.h"
#include "cli/network.h"
#include "cli/outcome.h"
#include "cli/process.h"
#include "cli/sandbox_files.h"
#include "cli/sandbox_nodes.h"
#include "proto/control_client.h"

namespace pmirror::cli {
namespace {

namespace stdfs = std::filesystem;

constexpr std::chrono::milliseconds kCallTimeout{2000};

absl::Status Bring(Sandbox& sandbox) {
  if (absl::Status status = MakeDirectories(sandbox); !status.ok()) {
    return status;
  }
  if (absl::Status status = SaveState(sandbox); !status.ok()) {
    return status;
  }
  for (const SandboxNode& node : sandbox.nodes) {
    if (absl::Status status = WriteFile(node.Config(), ConfigOf(sandbox, node)); !status.ok()) {
      return status;
    }
    if (absl::Status status = CheckConfig(node); !status.ok()) {
      return status;
    }
  }
  if (sandbox.options.netns) {
    if (absl::Status status = MakeNetwork(sandbox); !status.ok()) {
      return status;
    }
  }
  for (SandboxNode& node : sandbox.nodes) {
    const absl::StatusOr<pid_t> pid = StartNode(sandbox, node);
    if (!pid.ok()) {
      return pid.status();
    }
    node.pid = *pid;
  }
  if (absl::Status status = SaveState(sandbox); !status.ok()) {
    return status;
  }
  for (const SandboxNode& node : sandbox.nodes) {
    if (absl::Status status = WaitUntilItAnswers(node); !status.ok()) {
      return status;
    }
  }
  return WaitUntilInSync(sandbox);
}

// What can be known without DIR/sandbox.json, when `up` did not come so far: enough to remove it all.
Sandbox GuessFrom(const stdfs::path& directory) {
  SandboxOptions options;
  options.directory = directory;
  options.nodes = kMaxSandboxNodes;
  options.netns = true;
  Sandbox sandbox = PlanSandbox(options, {}, {""});
  sandbox.volumes.clear();
  return sandbox;
}

struct Opened {
  SandboxLock lock;
  Sandbox sandbox;
};

absl::StatusOr<Opened> OpenLocked(const stdfs::path& directory) {
  if (!stdfs::exists(StateFile(Canonical(directory)))) {
    return absl::NotFoundError(fmt::format("there is no sandbox in {}; make one: pmirror sandbox up {}",
                                           directory.string(), directory.string()));
  }
  absl::StatusOr<SandboxLock> lock = SandboxLock::Take(Canonical(directory));
  if (!lock.ok()) {
    return lock.status();
  }
  absl::StatusOr<Sandbox> sandbox = OpenSandbox(directory);
  if (!sandbox.ok()) {
    return sandbox.status();
  }
  return Opened{*std::move(lock), *std::move(sandbox)};
}

absl::Status NoSuchNode(const Sandbox& sandbox, const std::string& name) {
  std::vector<std::string> names;
  for (const SandboxNode& node : sandbox.nodes) {
    names.push_back(node.name);
  }
  return absl::NotFoundError(
      fmt::format("there is no node '{}'; there are {}", name, fmt::join(names, ", ")));
}

// Requires: the lock is held.
absl::Status TakeDown(const Sandbox& sandbox, bool keep) {
  for (const SandboxNode& node : sandbox.nodes) {
    if (absl::Status status = KillNode(sandbox, node); !status.ok()) {
      return status;
    }
  }
  if (absl::Status status = DetachMountsBelow(sandbox.options.directory); !status.ok()) {
    return status;
  }
  if (absl::Status status = RemoveNetwork(sandbox); !status.ok()) {
    return status;
  }
  std::error_code ignored;
  stdfs::remove(StateFile(sandbox.options.directory), ignored);
  return keep ? absl::OkStatus() : RemoveDirectories(sandbox);
}

}  // namespace

absl::StatusOr<Sandbox> SandboxUp(const SandboxOptions& wanted) {
  SandboxOptions options = wanted;
  options.directory = Canonical(options.directory);
  if (!options.backing_root.empty()) {
    options.backing_root = Canonical(options.backing_root);
  }
  if (absl::Status status = CheckOptions(options); !status.ok()) {
    return status;
  }
  if (::geteuid() != 0) {
    return absl::PermissionDeniedError("a sandbox mounts file systems: run it as root");
  }
  const absl::StatusOr<std::vector<uint16_t>> ports = FreePorts(2 * static_cast<size_t>(options.nodes));
  if (!ports.ok()) {
    return ports.status();
  }
  std::vector<std::string> uuids(static_cast<size_t>(options.volumes));
  std::generate(uuids.begin(), uuids.end(), &NewUuid);
  Sandbox sandbox = PlanSandbox(options, *ports, uuids);
  for (const SandboxNode& node : sandbox.nodes) {
    if (stdfs::exists(node.directory) || stdfs::exists(StateFile(options.directory))) {
      return absl::AlreadyExistsError(
          fmt::format("{} already holds a sandbox; remove it: pmirror sandbox down {}",
                      options.directory.string(), options.directory.string()));
    }
  }
  std::error_code error;
  stdfs::create_directories(options.directory, error);
  const absl::StatusOr<SandboxLock> lock = SandboxLock::Take(options.directory);
  if (!lock.ok()) {
    return lock.status();
  }
  // Processes, mounts and namespaces of a sandbox whose directory was removed under it are in the way.
  absl::Status status = TakeDown(sandbox, /*keep=*/true);
  status.Update(status.ok() ? Bring(sandbox) : absl::OkStatus());
  if (!status.ok()) {
    if (absl::Status down = TakeDown(sandbox, /*keep=*/false); !down.ok()) {
      Note(Sentence(down));
    }
    return status;
  }
  return sandbox;
}

absl::Status SandboxKill(const stdfs::path& directory, const std::string& name) {
  absl::StatusOr<Opened> opened = OpenLocked(directory);
  if (!opened.ok()) {
    return opened.status();
  }
  SandboxNode* node = opened->sandbox.Node(name);
  if (node == nullptr) {
    return NoSuchNode(opened->sandbox, name);
  }
  if (absl::Status status = KillNode(opened->sandbox, *node); !status.ok()) {
    return status;
  }
  if (absl::Status status = DetachMountsBelow(node->directory); !status.ok()) {
    return status;
  }
  node->pid = 0;
  return SaveState(opened->sandbox);
}

absl::Status SandboxStart(const stdfs::path& directory, const std::string& name) {
  absl::StatusOr<Opened> opened = OpenLocked(directory);
  if (!opened.ok()) {
    return opened.status();
  }
  SandboxNode* node = opened->sandbox.Node(name);
  if (node == nullptr) {
    return NoSuchNode(opened->sandbox, name);
  }
  if (node->pid != 0 && IsRunning(node->pid)) {
    return absl::FailedPreconditionError(fmt::format("{} is running already (pid {})", name, node->pid));
  }
  const absl::StatusOr<pid_t> pid = StartNode(opened->sandbox, *node);
  if (!pid.ok()) {
    return pid.status();
  }
  node->pid = *pid;
  if (absl::Status status = SaveState(opened->sandbox); !status.ok()) {
    return status;
  }
  return WaitUntilItAnswers(*node);
}

absl::Status SandboxSetReachable(const stdfs::path& directory, const std::string& first,
                                 const std::string& second, bool reachable) {
  absl::StatusOr<Opened> opened = OpenLocked(directory);
  if (!opened.ok()) {
    return opened.status();
  }
  const SandboxNode* a = opened->sandbox.Node(first);
  const SandboxNode* b = opened->sandbox.Node(second);
  if (a == nullptr || b == nullptr) {
    return NoSuchNode(opened->sandbox, a == nullptr ? first : second);
  }
  if (a == b) {
    return absl::InvalidArgumentError(fmt::format("{} and {} are the same node", first, second));
  }
  if (opened->sandbox.options.netns) {
    return reachable ? HealNetwork(*a, *b) : CutNetwork(*a, *b);
  }
  for (const auto& [node, other] : {std::pair(a, b), std::pair(b, a)}) {
    control::SetReachableRequest request;
    request.set_node(other->name);
    request.set_reachable(reachable);
    const auto reply = proto::ControlClient({node->Control()}).SetReachable(request, kCallTimeout);
    if (!reply.ok()) {
      return absl::Status(reply.status().code(),
                          fmt::format("{} does not do it: {}", node->name, Sentence(reply.status())));
    }
  }
  return absl::OkStatus();
}

absl::Status SandboxDown(const stdfs::path& directory, bool keep) {
  const stdfs::path canonical = Canonical(directory);
  if (::geteuid() != 0) {
    return absl::PermissionDeniedError("a sandbox has mounts and processes of root: run it as root");
  }
  if (!stdfs::exists(canonical)) {
    const Sandbox guess = GuessFrom(canonical);  // the directory may have been removed under a living sandbox
    return TakeDown(guess, /*keep=*/true);
  }
  const absl::StatusOr<SandboxLock> lock = SandboxLock::Take(canonical);
  if (!lock.ok()) {
    return lock.status();
  }
  absl::StatusOr<Sandbox> sandbox = OpenSandbox(canonical);
  if (!sandbox.ok()) {
    sandbox = GuessFrom(canonical);
  }
  return TakeDown(*sandbox, keep);
}

}  // namespace pmirror::cli
