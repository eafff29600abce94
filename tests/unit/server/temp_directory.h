// SPDX-License-Identifier: BSD-3-Clause
// A directory for one test, removed at its end; optionally a file system of its own of a chosen size.
#pragma once

#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace pmirror::server {

class TempDirectory {
 public:
  // In /dev/shm (tmpfs): fast, and it has trusted attributes and file handles.
  TempDirectory() : TempDirectory("/dev/shm") {}
  explicit TempDirectory(const std::string& parent) {
    std::string name = parent + "/pmirror-test-XXXXXX";
    EXPECT_NE(::mkdtemp(name.data()), nullptr) << parent;
    path_ = name;
  }
  ~TempDirectory() {
    if (mounted_) {
      ::umount2(path_.c_str(), MNT_DETACH);
    }
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  // Mounts a tmpfs of `bytes` on it. False where mounting is not allowed.
  bool MountSmall(size_t bytes) {
    const std::string size = "size=" + std::to_string(bytes);
    mounted_ = ::mount("tmpfs", path_.c_str(), "tmpfs", 0, size.c_str()) == 0;
    return mounted_;
  }

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
  bool mounted_ = false;
};

}  // namespace pmirror::server
