// SPDX-License-Identifier: BSD-3-Clause
// The registry of programs over a mounted volume, and an event sink that counts.
#pragma once

#include <map>
#include <memory>
#include <string>

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

}  // namespace pmirror::fs
