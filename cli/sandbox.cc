// SPDX-License-Identifier: BSD-3-Clause
// The commands of the test bed.
#include "cli/sandbox.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <map>
#include <system_error>
#include <utility>
#include <vector>

#include "cli/mounts.h"
#include "cli/network.h"
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

stdfs::path StateFile(const stdfs::path& directory) { return directory / "sandbox.json"; }

// One command at a time on a sandbox: held until the end of the process or of the object.
class SandboxLock {
 public:
  static absl::StatusOr<SandboxLock> Take(const stdfs::path& directory) {
    const int fd = ::open((directory / ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
      return absl::ErrnoToStatus(errno, fmt::format("cannot use {}", directory.string()));
    }
    SandboxLock lock(fd);
    if (::flock(fd, LOCK_EX) != 0) {
      return absl::ErrnoToStatus(errno, fmt::format("cannot lock {}", directory.string()));
    }
    return lock;
  }
  SandboxLock(SandboxLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~SandboxLock() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }

 private:
  explicit SandboxLock(int fd) : fd_(fd) {}
  int fd_;
};

absl::Status WriteFile(const stdfs::path& path, const std::string& text) {
  const stdfs::path fresh = path.string() + ".new";
  std::ofstream out(fresh, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (!out || ::rename(fresh.c_str(), path.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot write {}", path.string()));
  }
  return absl::OkStatus();
}

absl::Status SaveState(const Sandbox& sandbox) {
  return WriteFile(StateFile(sandbox.options.directory), Save(sandbox));
}

absl::Status MakeDirectories(const Sandbox& sandbox) {
  for (const SandboxNode& node : sandbox.nodes) {
    for (const SandboxVolume& volume : sandbox.volumes) {
      for (const stdfs::path& path : {sandbox.Backing(node, volume), sandbox.Mount(node, volume)}) {
        std::error_code error;
        stdfs::create_directories(path, error);
        if (error) {
          return absl::InternalError(fmt::format("cannot make {}: {}", path.string(), error.message()));
        }
      }
    }
  }
  return absl::OkStatus();
}

std::string NewUuid() {
  std::array<unsigned char, 16> b{};
  if (::getrandom(b.data(), b.size(), 0) != static_cast<ssize_t>(b.size())) {
    std::abort();  // the kernel never refuses 16 bytes
  }
  b[6] = static_cast<unsigned char>((b[6] & 0x0f) | 0x40);  // version 4, RFC 4122
  b[8] = static_cast<unsigned char>((b[8] & 0x3f) | 0x80);
  std::string text;
  for (size_t i = 0; i < b.size(); ++i) {
    text += fmt::format("{}{:02x}", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", b[i]);
  }
  return text;
}

// Ports of the loopback interface that nobody has now. All are held at once, so that they differ.
absl::StatusOr<std::vector<uint16_t>> FreePorts(size_t count) {
  std::vector<int> sockets;
  std::vector<uint16_t> ports;
  while (ports.size() < count) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockets.push_back(fd);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    if (fd < 0 || ::bind(fd, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
      break;
    }
    ports.push_back(ntohs(address.sin_port));
  }
  std::for_each(sockets.begin(), sockets.end(), &::close);
  if (ports.size() < count) {
    return absl::ErrnoToStatus(errno, "cannot find free ports");
  }
  return ports;
}

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

// The daemon's own word on the node's configuration, before anything is started.
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

// Ends every process of one node.
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

// The directory without '.', '..', symlinks and a slash at its end: what everything is named after.
stdfs::path Canonical(const stdfs::path& directory) {
  std::error_code error;
  const stdfs::path canonical = stdfs::weakly_canonical(stdfs::absolute(directory), error);
  return canonical.has_filename() ? canonical : canonical.parent_path();
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

absl::Status RemoveDirectories(const Sandbox& sandbox) {
  const stdfs::path& directory = sandbox.options.directory;
  std::vector<stdfs::path> paths;
  for (const SandboxNode& node : sandbox.nodes) {
    paths.push_back(node.directory);
  }
  if (!sandbox.BackingRoot().empty()) {
    paths.push_back(sandbox.BackingRoot());
  }
  for (const stdfs::path& path : paths) {
    // Never remove what somebody has mounted there.
    if (!MountsBelow(path).empty()) {
      return absl::FailedPreconditionError(
          fmt::format("something is mounted below {}; unmount it first", path.string()));
    }
    std::error_code error;
    stdfs::remove_all(path, error);
    if (error) {
      return absl::InternalError(fmt::format("cannot remove {}: {}", path.string(), error.message()));
    }
  }
  std::error_code ignored;
  stdfs::remove(directory / ".lock", ignored);
  stdfs::remove(directory, ignored);  // when nothing else is in it
  return absl::OkStatus();
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

absl::StatusOr<Sandbox> OpenSandbox(const stdfs::path& directory) {
  const stdfs::path file = StateFile(Canonical(directory));
  std::ifstream in(file, std::ios::binary);
  if (!in.is_open()) {
    return absl::NotFoundError(fmt::format("there is no sandbox in {}; make one: pmirror sandbox up {}",
                                           directory.string(), directory.string()));
  }
  absl::StatusOr<Sandbox> sandbox =
      Restore({std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()});
  if (!sandbox.ok()) {
    return absl::DataLossError(fmt::format("{} {}", file.string(), Sentence(sandbox.status())));
  }
  return sandbox;
}

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
