// SPDX-License-Identifier: BSD-3-Clause
// The program on whose behalf the file system works, and how a thread of the daemon creates objects in its
// name.
#pragma once

#include <sys/types.h>

#include <cstdint>

namespace pmirror::fs {

struct Caller {
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t umask = 0;  // only set for requests that create something
  pid_t pid = 0;  // a thread id as the daemon sees it; 0 when the kernel acts for itself or the program is
                  // not visible here
};

// The caller may keep setgid bits of objects of this group: root, or a member.
bool InGroup(const Caller& caller, gid_t gid);

// While it lives, what this thread creates belongs to `caller`, and the caller's umask holds (the backing
// file system ignores it where a default ACL rules). So a new object has its owner from its first instant,
// and inheritance (setgid directories, ACLs) is the backing file system's own.
//
// The thread keeps all its capabilities meanwhile: permission was checked by the kernel in front of the
// mount, which knows the caller's groups; the daemon does not. On first use in a thread its umask is detached
// from the process's (unshare(CLONE_FS)), for good.
class ScopedCaller {
 public:
  explicit ScopedCaller(const Caller& caller);
  ~ScopedCaller();
  ScopedCaller(const ScopedCaller&) = delete;
  ScopedCaller& operator=(const ScopedCaller&) = delete;

  // 0, or the errno why this thread cannot act as others (no CAP_SETPCAP or CAP_SYS_ADMIN). Then nothing was
  // changed.
  int error() const { return error_; }

 private:
  int error_ = 0;
  mode_t old_umask_ = 0;
};

}  // namespace pmirror::fs
