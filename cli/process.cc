// SPDX-License-Identifier: BSD-3-Clause
// fork and exec, /proc, and signals.
#include "cli/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "cli/wait.h"

namespace pmirror::cli {
namespace {

constexpr std::chrono::seconds kKillTimeout{10};
constexpr int kEnvironmentTimeoutMs = 1000;
constexpr char kNamespaces[] = "/run/netns/";

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() { Close(); }
  void Close() {
    if (fd_ >= 0) {
      ::close(std::exchange(fd_, -1));
    }
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

struct Pipe {
  Descriptor read, write;
};

absl::StatusOr<Pipe> MakePipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return absl::ErrnoToStatus(errno, "cannot make a pipe");
  }
  return Pipe{Descriptor(ends[0]), Descriptor(ends[1])};
}

// A socket pair instead of a pipe: a tool that does not read its input to the end must not kill us with
// SIGPIPE.
absl::StatusOr<Pipe> MakeInput() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    return absl::ErrnoToStatus(errno, "cannot make a socket pair");
  }
  return Pipe{Descriptor(ends[0]), Descriptor(ends[1])};
}

std::vector<char*> Pointers(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (const std::string& word : words) {
    pointers.push_back(const_cast<char*>(word.c_str()));
  }
  pointers.push_back(nullptr);
  return pointers;
}

// Feeds `input`, and reads both outputs until they end.
void Converse(const std::string& input, Descriptor in, Descriptor out, Descriptor errors, std::string& output,
              std::string& complaint) {
  size_t written = 0;
  bool out_open = true;
  bool errors_open = true;
  std::array<char, 4096> buffer{};
  const auto take = [&buffer](const Descriptor& from, std::string& to) {
    const ssize_t got = ::read(from.get(), buffer.data(), buffer.size());
    if (got > 0) {
      to.append(buffer.data(), static_cast<size_t>(got));
    }
    return got > 0 || (got < 0 && errno == EINTR);
  };
  while (out_open || errors_open) {
    if (written == input.size()) {
      in.Close();
    }
    std::array<pollfd, 3> polled{{{out_open ? out.get() : -1, POLLIN, 0},
                                  {errors_open ? errors.get() : -1, POLLIN, 0},
                                  {in.get(), POLLOUT, 0}}};
    if (::poll(polled.data(), polled.size(), -1) < 0) {
      continue;
    }
    if (polled[0].revents != 0) {
      out_open = take(out, output);
    }
    if (polled[1].revents != 0) {
      errors_open = take(errors, complaint);
    }
    if (polled[2].revents != 0) {
      const ssize_t put =
          ::send(in.get(), input.data() + written, input.size() - written, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (put > 0) {
        written += static_cast<size_t>(put);
      } else if (errno != EAGAIN && errno != EINTR) {
        written = input.size();  // it reads no more
      }
    }
  }
}

int OpenNamespace(const std::string& name) {
  return ::open((kNamespaces + name).c_str(), O_RDONLY | O_CLOEXEC);
}

std::vector<pid_t> AllProcesses() {
  std::vector<pid_t> pids;
  const std::unique_ptr<DIR, int (*)(DIR*)> proc(::opendir("/proc"), &::closedir);
  while (const dirent* entry = proc ? ::readdir(proc.get()) : nullptr) {
    pid_t pid = 0;
    const char* end = entry->d_name + std::strlen(entry->d_name);
    if (const auto [stop, error] = std::from_chars(entry->d_name, end, pid);
        error == std::errc() && stop == end) {
      pids.push_back(pid);
    }
  }
  return pids;
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

bool HasEnvironment(pid_t pid, const std::string& marker) {
  const std::string environment = '\0' + ReadFile(fmt::format("/proc/{}/environ", pid));
  return environment.find('\0' + marker + '\0') != std::string::npos;
}

// Looks at the processes `unread` from the last one on, takes out those it has looked at, and adds to `found`
// those that have the marker. Reading an environment takes a lock of the process's memory, which a process
// that is stuck in the kernel may hold for ever. So a child reads, and is killed when it is stuck too; that
// process is then left out.
void ReadEnvironments(const std::string& marker, std::vector<pid_t>& unread, std::vector<pid_t>& found) {
  absl::StatusOr<Pipe> answers = MakePipe();
  const pid_t reader = answers.ok() ? ::fork() : -1;
  if (reader < 0) {
    unread.clear();
    return;
  }
  if (reader == 0) {
    for (auto pid = unread.rbegin(); pid != unread.rend(); ++pid) {
      const char answer = HasEnvironment(*pid, marker) ? 1 : 0;
      if (::write(answers->write.get(), &answer, 1) != 1) {
        break;
      }
    }
    ::_exit(0);
  }
  answers->write.Close();
  while (!unread.empty()) {
    pollfd polled{answers->read.get(), POLLIN, 0};
    char answer = 0;
    const bool answered =
        ::poll(&polled, 1, kEnvironmentTimeoutMs) == 1 && ::read(answers->read.get(), &answer, 1) == 1;
    const pid_t pid = unread.back();
    unread.pop_back();
    if (!answered) {
      break;
    }
    if (answer == 1) {
      found.push_back(pid);
    }
  }
  ::kill(reader, SIGKILL);
  ::waitpid(reader, nullptr, 0);
}

}  // namespace

absl::StatusOr<std::filesystem::path> BinaryDirectory() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) {
    return absl::InternalError(fmt::format("cannot read /proc/self/exe: {}", error.message()));
  }
  return self.parent_path();
}

absl::StatusOr<std::string> RunTool(const std::vector<std::string>& words, const std::string& input) {
  absl::StatusOr<Pipe> in = MakeInput();
  absl::StatusOr<Pipe> out = MakePipe();
  absl::StatusOr<Pipe> errors = MakePipe();
  if (!in.ok() || !out.ok() || !errors.ok()) {
    return absl::ResourceExhaustedError("cannot make pipes");
  }
  std::vector<char*> arguments = Pointers(words);
  const pid_t pid = ::fork();
  if (pid < 0) {
    return absl::ErrnoToStatus(errno, "cannot fork");
  }
  if (pid == 0) {
    ::dup2(in->read.get(), STDIN_FILENO);
    ::dup2(out->write.get(), STDOUT_FILENO);
    ::dup2(errors->write.get(), STDERR_FILENO);
    ::execvp(arguments[0], arguments.data());
    ::_exit(127);
  }
  in->read.Close();
  out->write.Close();
  errors->write.Close();
  std::string output;
  std::string complaint;
  Converse(input, std::move(in->write), std::move(out->read), std::move(errors->read), output, complaint);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    return output;
  }
  while (!complaint.empty() && complaint.back() == '\n') {
    complaint.pop_back();
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127 && complaint.empty()) {
    complaint = "not found; is its package installed?";
  }
  return absl::FailedPreconditionError(fmt::format("{}: {}", words[0], complaint));
}

absl::Status EnterNetworkNamespace(const std::string& name) {
  const Descriptor fd(OpenNamespace(name));
  if (fd.get() < 0 || ::setns(fd.get(), CLONE_NEWNET) != 0) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot enter the network namespace {}", name));
  }
  return absl::OkStatus();
}

absl::StatusOr<pid_t> StartDaemon(const DaemonToStart& daemon) {
  const Descriptor log(::open(daemon.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  const Descriptor null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (log.get() < 0 || null.get() < 0) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot open {}", daemon.log.string()));
  }
  const Descriptor network(daemon.network_namespace.empty() ? -1 : OpenNamespace(daemon.network_namespace));
  if (!daemon.network_namespace.empty() && network.get() < 0) {
    return absl::ErrnoToStatus(errno,
                               fmt::format("cannot open the network namespace {}", daemon.network_namespace));
  }
  const std::vector<char*> arguments = Pointers(daemon.words);
  std::vector<char*> environment = Pointers(daemon.environment);
  environment.pop_back();
  for (char** entry = environ; *entry != nullptr; ++entry) {
    environment.push_back(*entry);
  }
  environment.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid < 0) {
    return absl::ErrnoToStatus(errno, "cannot fork");
  }
  if (pid == 0) {
    if (network.get() >= 0 && ::setns(network.get(), CLONE_NEWNET) != 0) {
      ::_exit(126);
    }
    ::setsid();
    ::dup2(null.get(), STDIN_FILENO);
    ::dup2(log.get(), STDOUT_FILENO);
    ::dup2(log.get(), STDERR_FILENO);
    ::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
    if (::chdir("/") != 0) {
      ::_exit(126);
    }
    ::execve(arguments[0], arguments.data(), environment.data());
    ::_exit(127);
  }
  return pid;
}

bool IsRunning(pid_t pid) {
  const std::string stat = ReadFile(fmt::format("/proc/{}/stat", pid));
  const size_t end = stat.rfind(')');  // the name before it may hold anything
  return end != std::string::npos && end + 2 < stat.size() && stat[end + 2] != 'Z' && stat[end + 2] != 'X';
}

std::vector<pid_t> ProcessesWithEnvironment(const std::string& marker) {
  std::vector<pid_t> found;
  std::vector<pid_t> unread = AllProcesses();
  while (!unread.empty()) {
    ReadEnvironments(marker, unread, found);
  }
  found.erase(std::remove_if(found.begin(), found.end(), [](pid_t pid) { return !IsRunning(pid); }),
              found.end());
  return found;
}

std::vector<pid_t> ProcessesInNamespace(const std::string& name) {
  std::vector<pid_t> found;
  struct stat wanted {};
  if (::stat((kNamespaces + name).c_str(), &wanted) != 0) {
    return found;
  }
  for (const pid_t pid : AllProcesses()) {
    struct stat own {};
    if (::stat(fmt::format("/proc/{}/ns/net", pid).c_str(), &own) == 0 && own.st_ino == wanted.st_ino &&
        own.st_dev == wanted.st_dev && IsRunning(pid)) {
      found.push_back(pid);
    }
  }
  return found;
}

absl::Status KillAll(const std::function<std::vector<pid_t>()>& find) {
  std::vector<pid_t> left;
  const bool gone = WaitUntil(
      [&] {
        left = find();
        left.erase(std::remove(left.begin(), left.end(), ::getpid()), left.end());
        for (const pid_t pid : left) {
          ::kill(pid, SIGKILL);
          ::waitpid(pid, nullptr, WNOHANG);  // when it is our child
        }
        return left.empty();
      },
      kKillTimeout);
  return gone ? absl::OkStatus()
              : absl::DeadlineExceededError(
                    fmt::format("these processes did not end: {}", fmt::join(left, ", ")));
}

}  // namespace pmirror::cli
