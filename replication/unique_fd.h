// SPDX-License-Identifier: BSD-3-Clause
// RAII owner of a file descriptor. Close goes straight to the kernel (syscall), so that it also works inside a program whose close()
// pmirror intercepts.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <utility>

namespace pmirror {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      Reset(std::exchange(other.fd_, -1));
    }
    return *this;
  }
  ~UniqueFd() { Reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  // Gives up ownership.
  int Release() { return std::exchange(fd_, -1); }
  void Reset(int fd = -1) {
    if (fd_ >= 0) {
#ifdef __SANITIZE_THREAD__  // it has to see that the number is free, or takes its next use for a race
      ::close(fd_);
#else
      ::syscall(SYS_close, fd_);
#endif
    }
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

}  // namespace pmirror
