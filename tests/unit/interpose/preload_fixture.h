// SPDX-License-Identifier: BSD-3-Clause
// The fixture of the tests that run whole programs under the preload library: a fake daemon with a fake
// replica, one file of eight pages.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <memory>

#include "tests/unit/interpose/fake_daemon.h"
#include "tests/unit/interpose/guest_process.h"

namespace pmirror::interpose {

class PreloadTest : public ::testing::Test {
 protected:
  PreloadTest() {
    std::signal(SIGPIPE,
                SIG_IGN);  // a guest that died early is a failed expectation, not the end of the tests
    Start({});
  }

  // Again, with other settings.
  void Start(FakeDaemon::Settings settings, size_t pages = 8) {
    daemon_ = std::make_unique<FakeDaemon>(settings);
    file_ = daemon_->MakeFile("file", pages * kPageSize);
  }

  std::unique_ptr<GuestProcess> Launch(const std::string& command,
                                       std::vector<std::string> environment = {}) {
    environment.push_back("PMIRROR_SOCKET=" + daemon_->socket_path());
    return std::make_unique<GuestProcess>(command, file_, environment);
  }
  static void ExpectSuccess(GuestProcess& guest) {
    const int status = guest.Wait();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status << "\n"
                                                               << guest.complaints();
    EXPECT_EQ(guest.complaints(), "");  // P7: nothing is printed
  }
  void Run(const std::string& command) { ExpectSuccess(*Launch(command)); }

  void ExpectEqualCopies() {
    EXPECT_TRUE(daemon_->Content("file") == daemon_->Replicated("file"));
    EXPECT_EQ(daemon_->replica().faults(), 0u);
  }
  std::string At(const std::string& bytes, size_t offset, size_t length) {
    return bytes.substr(offset, length);
  }
  std::string ReplicatedAt(size_t offset, size_t length) {
    return daemon_->Replicated("file").substr(offset, length);
  }
  uint64_t DataFrames() { return daemon_->replica().frames(FrameKind::kDataImage); }

  std::unique_ptr<FakeDaemon> daemon_;
  std::string file_;
};

constexpr size_t kPage = kPageSize;

}  // namespace pmirror::interpose
