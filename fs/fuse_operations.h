// SPDX-License-Identifier: BSD-3-Clause
// The FUSE adapter of FileSystem: translates requests and replies, decides nothing about files.
#pragma once

#include <mutex>
#include <unordered_set>

#include "fs/file_system.h"
#include "fs/raw_request.h"

struct fuse_lowlevel_ops;

namespace pmirror::fs {

// How long the kernel may believe what it was told. Only this mount changes the tree, and what changes behind
// the kernel's back is taken from it (KernelCache); the bound is for our errors.
constexpr double kEntrySeconds = 60;
constexpr double kAttributeSeconds = 10;

// The user data of a session's operations.
struct FuseContext {
  FileSystem& file_system;
  bool has_acls = false;  // the backing file system knows POSIX ACLs

  // What is open, for the end of a session: the kernel does not release handles over a broken connection.
  std::mutex mutex;
  std::unordered_set<FileHandle*> files;             // guarded by mutex
  std::unordered_set<DirectoryHandle*> directories;  // guarded by mutex

  explicit FuseContext(FileSystem& fs) : file_system(fs) {}
  // The number under which the kernel knows an open file, until Take.
  uint64_t Keep(std::unique_ptr<FileHandle> file);
  std::unique_ptr<FileHandle> Take(uint64_t fh);
  // Closes all that is still open. Requires: no request is under way.
  void ReleaseAll();
};

// Takes a FuseContext* as user data.
const fuse_lowlevel_ops& FuseOperations();

// In fuse_extra_requests.cc: requests that libfuse 3.14 does not know. True when `request` was one and has
// been answered on `device`.
bool AnswerBeyondLibfuse(FuseContext& context, const RawRequest& request, int device);

}  // namespace pmirror::fs
