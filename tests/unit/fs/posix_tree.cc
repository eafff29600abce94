// SPDX-License-Identifier: BSD-3-Clause
// Logging and comparing of trees. See posix_tree.h.
#include "tests/unit/fs/posix_tree.h"

#include <fcntl.h>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace pmirror::fs {
namespace {

std::string Describe(const struct stat& info) {
  std::ostringstream text;
  text << std::oct << "mode " << info.st_mode << std::dec << " uid " << info.st_uid << " gid " << info.st_gid
       << " links " << info.st_nlink << " rdev " << info.st_rdev;
  if (!S_ISDIR(info.st_mode)) {
    text << " size " << info.st_size;
  }
  return text.str();
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string Xattrs(const std::string& path) {
  std::string list(65536, '\0');
  const ssize_t length = ::llistxattr(path.c_str(), list.data(), list.size());
  std::vector<std::string> lines;
  for (size_t at = 0; length > 0 && at < static_cast<size_t>(length);
       at += std::strlen(list.c_str() + at) + 1) {
    const char* name = list.c_str() + at;
    std::string value(65536, '\0');
    const ssize_t n = ::lgetxattr(path.c_str(), name, value.data(), value.size());
    value.resize(n < 0 ? 0 : static_cast<size_t>(n));
    lines.push_back(std::string(" ") + name + "=" + std::to_string(std::hash<std::string>{}(value)));
  }
  std::sort(lines.begin(), lines.end());
  std::string all;
  for (const std::string& line : lines) {
    all += line;
  }
  return all;
}

bool After(const timespec& a, const timespec& b) {
  return a.tv_sec > b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec > b.tv_nsec);
}

// File times are taken from the coarse clock, which moves every few milliseconds.
void WaitForClockPast(const timespec& time) {
  timespec now{};
  do {
    ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  } while (!After(now, time));
}

}  // namespace

void Tree::Note(const std::string& what, const std::string& text) { log_.push_back(what + ": " + text); }

void Tree::Log(const std::string& what, long result) {
  const int saved = errno;
  Note(what, result == -1 ? ::strerrorname_np(saved) : std::to_string(result));
}

void Tree::Stat(const std::string& name) {
  struct stat info {};
  const int result = ::lstat((*this / name).c_str(), &info);
  Note("stat " + name, result == 0 ? Describe(info) : ::strerrorname_np(errno));
}

void Tree::Stat(const std::string& what, int fd) {
  struct stat info {};
  const int result = ::fstat(fd, &info);
  Note("fstat " + what, result == 0 ? Describe(info) : ::strerrorname_np(errno));
}

void Tree::Content(const std::string& name) {
  const std::string text = ReadAll(*this / name);
  Note("content " + name,
       std::to_string(text.size()) + " bytes, " + std::to_string(std::hash<std::string>{}(text)));
}

int Tree::Open(const std::string& name, int flags, mode_t mode) {
  const int fd = ::open((*this / name).c_str(), flags | O_CLOEXEC, mode);
  Log("open " + name.substr(0, 40), fd == -1 ? -1 : 0);
  if (fd != -1) {
    open_.push_back(fd);
  }
  return fd;
}

void Tree::Close(int fd) {
  Log("close", ::close(fd));
  std::erase(open_, fd);
}

void Tree::CloseAll() {
  for (const int fd : open_) {
    ::close(fd);
  }
  open_.clear();
}

void Tree::Times(const std::string& what, const std::string& name, const std::function<void()>& call) {
  struct stat before {};
  struct stat after {};
  ::lstat((*this / name).c_str(), &before);
  WaitForClockPast(before.st_ctim);
  WaitForClockPast(before.st_mtim);
  call();
  const int result = ::lstat((*this / name).c_str(), &after);
  Note("times " + what,
       result != 0 ? "gone"
                   : std::string("ctime ") + (After(after.st_ctim, before.st_ctim) ? "moved" : "stays") +
                         ", mtime " + (After(after.st_mtim, before.st_mtim) ? "moved" : "stays"));
}

void Tree::As(uid_t uid, gid_t gid, const std::vector<gid_t>& groups, const std::function<void()>& calls) {
  const size_t start = log_.size();
  Apart([&] {
    if (::setgroups(groups.size(), groups.data()) != 0 || ::setresgid(gid, gid, gid) != 0 ||
        ::setresuid(uid, uid, uid) != 0) {
      ::_exit(2);
    }
    calls();
  });
  for (size_t i = start; i < log_.size(); ++i) {
    log_[i] = "[" + std::to_string(uid) + "] " + log_[i];
  }
}

void Tree::Apart(const std::function<void()>& calls) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    Note("pipe", "failed");
    return;
  }
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    log_.clear();
    calls();
    CloseAll();
    std::string text;
    for (const std::string& line : log_) {
      text += line + '\0';
    }
    const bool sent = ::write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    ::_exit(sent ? 0 : 3);
  }
  ::close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(ends[0], buffer, sizeof(buffer))) > 0;) {
    text.append(buffer, static_cast<size_t>(n));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  for (size_t at = 0; at < text.size(); at += log_.back().size() + 1) {
    log_.emplace_back(text.c_str() + at);
  }
  Note("child", std::to_string(status));
}

std::vector<std::string> Tree::Snapshot() const {
  std::vector<std::string> lines;
  const auto add = [&](const std::string& path) {
    struct stat info {};
    ::lstat(path.c_str(), &info);
    std::string line = path.substr(root_.size()).substr(0, 300) + " " + Describe(info) + Xattrs(path);
    if (S_ISLNK(info.st_mode)) {
      line += " -> " + std::filesystem::read_symlink(path).string();
    }
    if (S_ISREG(info.st_mode)) {
      line += " # " + std::to_string(std::hash<std::string>{}(ReadAll(path)));
    }
    lines.push_back(std::move(line));
  };
  add(root_);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root_)) {
    add(entry.path().string());
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

}  // namespace pmirror::fs
