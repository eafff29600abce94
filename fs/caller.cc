// SPDX-License-Identifier: BSD-3-Clause
// Per-thread file system identity. See caller.h.
#include "fs/caller.h"

#include <linux/securebits.h>
#include <sched.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <cerrno>

#include "fs/proc_status.h"

namespace pmirror::fs {
namespace {

// Gives this thread its own umask, and lets it keep its capabilities when it takes another user's file system
// identity.
int PrepareThread() {
  if (::unshare(CLONE_FS) != 0) {
    return errno;
  }
  const int bits = ::prctl(PR_GET_SECUREBITS);
  if (bits < 0 || ::prctl(PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP) != 0) {
    return errno;
  }
  return 0;
}

}  // namespace

bool InGroup(const Caller& caller, gid_t gid) {
  return caller.uid == 0 || caller.gid == gid || HasGroup(caller.pid, gid);
}

ScopedCaller::ScopedCaller(const Caller& caller) {
  thread_local bool prepared = false;
  if (!prepared) {
    error_ = PrepareThread();
    if (error_ != 0) {
      return;
    }
    prepared = true;
  }
  old_umask_ = ::umask(caller.umask & 0777);
  ::setfsgid(caller.gid);
  ::setfsuid(caller.uid);
}

ScopedCaller::~ScopedCaller() {
  if (error_ != 0) {
    return;
  }
  ::setfsuid(0);
  ::setfsgid(0);
  ::umask(old_umask_);
}

}  // namespace pmirror::fs
