// SPDX-License-Identifier: BSD-3-Clause
// The registry of programs over a mounted volume, and an event sink that counts.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "fs/client_registry.h"
#include "tests/unit/fs/client_test_volume.h"
#include "tests/unit/fs/local_client.h"

namespace pmirror::fs {

class CountingEvents : public EventSink {
 public:
  void Report(Severity, std::string_view event, const Fields&) override {
    std::lock_guard lock(mutex_);
    ++counts_[std::string(event)];
  }
  size_t Count(const std::string& event) {
    std::lock_guard lock(mutex_);
    return counts_[event];
  }

 private:
  std::mutex mutex_;
  std::map<std::string, size_t> counts_;
};

constexpr uint64_t kPage = kPageSize;

class ClientFixture : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(registry_.Start(socket()).ok()); }
  void TearDown() override {
    registry_.Stop();
    for (const FileId id : files_) {
      EXPECT_FALSE(volume_.IsDirect(id)) << "a lease was left";
    }
  }

  std::string socket() const { return scratch_.path() + "/socket"; }
  FileId MakeFile(const std::string& name, size_t pages) {
    files_.push_back(volume_.MakeFile(name, pages));
    return files_.back();
  }
  // The dirty bytes of other programs in [0, pages).
  std::vector<Extent> Take(FileId file, uint64_t pages, ProcessSerial except = ProcessSerial::kNone) {
    ExtentSet dirty;
    registry_.StoresOf(0).Take(file, {0, pages * kPage}, except, dirty);
    return dirty.extents();
  }

  ScratchDirectory scratch_;
  CountingEvents events_;
  ClientRegistry registry_{events_, 16};
  TestVolume volume_{"v0", registry_};
  size_t index_ = registry_.Add(volume_).value();
  std::vector<FileId> files_;
};

// One registered program, played by the test itself.
class ProgramFixture : public ClientFixture {
 protected:
  void SetUp() override {
    ClientFixture::SetUp();
    client_.emplace(socket());
    ASSERT_EQ(client_->HelloMain({tickets_.fd()}).error(), 0);
  }

  UniqueFd Open(const std::string& name, int flags) const {
    UniqueFd fd(::open(volume_.At(name).c_str(), flags | O_CLOEXEC));
    EXPECT_TRUE(fd.valid()) << name;
    return fd;
  }
  // A file of eight pages with its backing file open for writing.
  FileId MakeOpened(const std::string& name) {
    const FileId id = MakeFile(name, 8);
    EXPECT_EQ(client_->OpenBacking(Open(name, O_RDWR).get()).error(), 0);
    return id;
  }
  // The program is over as far as the daemon knows.
  void EndProgram() {
    client_->Close();
    ASSERT_TRUE(EventuallyGone());
  }
  // What it owed has been handed on then.
  bool EventuallyGone() const {
    const Deadline deadline = Deadline::After(std::chrono::seconds(20));
    while (registry_.AnyAnnounced() && !deadline.Expired()) {
      std::this_thread::yield();
    }
    return !registry_.AnyAnnounced();
  }

  LocalTickets tickets_;
  std::optional<LocalClient> client_;
};

constexpr LocalClient::Where kEightPages{.address = 1 << 20, .length = 8 * kPage};

}  // namespace pmirror::fs
