// SPDX-License-Identifier: BSD-3-Clause
// A volume mounted for a test that is itself the program on it: a child serves it, so this process has one
// thread, and may map files of the mount and fork.
//
// A process that serves may do neither. The kernel writes mapped pages back with the mapper's memory locked.
// And a child forked beside threads may only call what is safe in a signal handler: a thread of the session
// may hold a lock of the allocator, which nobody in the child ever gives back. glibc's malloc copes; that of
// the address sanitizer (GCC 12) hangs.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "tests/unit/fs/mounted_volume.h"

namespace pmirror::fs {

// What serves (root_, fs_, session_, replicator_) exists in the child only; a check that fails there fails
// the test at its end. With PMIRROR_TEST_MOUNT each test works in a new directory there instead, on a volume
// that somebody else serves, and leaves it.
class ServedVolume : public MountedVolume {
 protected:
  void SetUp() override {
    if (const char* other = std::getenv("PMIRROR_TEST_MOUNT"); other != nullptr) {
      mount_ = std::string(other) + "/test-XXXXXX";
      ASSERT_NE(::mkdtemp(mount_.data()), nullptr) << std::strerror(errno);
      ASSERT_EQ(::chmod(mount_.c_str(), 0755), 0);
      return;
    }
    int ready[2];
    int end[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    ASSERT_EQ(::pipe2(end, O_CLOEXEC), 0);
    UniqueFd mounted(ready[0]);
    UniqueFd say_mounted(ready[1]);
    UniqueFd wait_end(end[0]);
    end_.Reset(end[1]);
    std::fflush(nullptr);  // else the child writes it too
    server_ = ::fork();
    ASSERT_GE(server_, 0);
    if (server_ == 0) {
      end_.Reset();
      Serve(std::move(say_mounted), wait_end.get());
    }
    say_mounted.Reset();
    char byte = 0;
    ASSERT_EQ(::read(mounted.get(), &byte, 1), 1) << "the child could not mount";
  }

  void TearDown() override {
    if (server_ < 0) {
      return;
    }
    end_.Reset();
    int status = -1;
    ASSERT_EQ(::waitpid(server_, &status, 0), server_);
    EXPECT_EQ(status, 0) << "what serves the volume failed";
  }

 private:
  // Until this process closes end_, or dies.
  [[noreturn]] void Serve(UniqueFd say_mounted, int wait_end) {
    MountedVolume::SetUp();
    if (!HasFatalFailure() && ::write(say_mounted.get(), "m", 1) == 1) {
      char byte = 0;
      EXPECT_EQ(::read(wait_end, &byte, 1), 0);
    }
    MountedVolume::TearDown();
    std::fflush(nullptr);
    ::_exit(HasFailure() ? 1 : 0);
  }

  UniqueFd end_;  // the child serves until it is closed
  pid_t server_ = -1;
};

}  // namespace pmirror::fs
