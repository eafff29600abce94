// SPDX-License-Identifier: BSD-3-Clause
// One mount of a volume: the FUSE connection and the threads that serve it.
//
// The threads are started as they are needed, up to a bound, and live until the end of the session. One more
// than the bound is allowed for each that waits for the kernel in DropData or WriteBack, because the kernel may need a
// thread before it lets go.
#pragma once

#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "fs/fuse_operations.h"
#include "fs/kernel_cache.h"
#include "replication/deadline.h"
#include "replication/result.h"
#include "replication/unique_fd.h"

struct fuse_session;

namespace pmirror::fs {

struct MountOptions {
  std::string mount_point;
  std::string
      socket;  // of the daemon's local protocol: programs find it in the mount's source, "pmirror:SOCKET"
  unsigned max_threads = 128;  // each may wait for a replica
};

class FuseSession : public KernelCache {
 public:
  // Mounts and starts to serve. `file_system` must outlive the session. EPERM without CAP_SYS_ADMIN, ENOENT
  // without /dev/fuse or the mount point.
  static Result<std::unique_ptr<FuseSession>> Mount(FileSystem& file_system, const BackingRoot& root,
                                                    const MountOptions& options);
  // Unmounts, without grace.
  ~FuseSession() override;

  // Writes back what the kernel has cached, waits until the deadline for programs to leave the mount, then
  // cuts the connection: who still uses it gets ENOTCONN. Returns when every thread has ended and everything
  // is closed. True when no program was cut off. Idempotent.
  bool Unmount(Deadline deadline);

  // Waits until the kernel has ended the session (somebody unmounted it). True when it has.
  bool WaitEnded(Deadline deadline);

  void DropData(FileId id, Extent extent) override;
  int WriteBack(FileId id) override;
  void DropAttributes(FileId id) override;
  void DropEntrySoon(FileId parent, const char* name) override;

 private:
  FuseSession(FileSystem& file_system, const MountOptions& options);
  Error Start(const BackingRoot& root);
  void Serve();
  void ServeRequest(std::span<char> message);
  void StartThreadIfNoneIdle();
  void DropEntries();
  bool StillMounted();
  bool LeaveMount(Deadline deadline);
  void AbortConnection();

  const MountOptions options_;
  FuseContext context_;
  fuse_session* session_ = nullptr;
  int device_ = -1;  // owned by session_; -1 before the mount and after the end
  dev_t mounted_device_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;  // with mutex_: entries_, ended_
  std::list<std::thread> threads_;   // guarded by mutex_
  unsigned idle_ = 0;                // guarded by mutex_: threads that wait for a request
  unsigned blocked_ = 0;             // guarded by mutex_: threads in DropData or WriteBack
  bool ended_ = false;               // guarded by mutex_: the connection is gone
  bool stopping_ = false;            // guarded by mutex_

  struct StaleEntry {
    FileId parent;
    std::string name;
  };
  static constexpr size_t kMaxStaleEntries = 1024;  // further ones wait for their timeout in the kernel
  std::deque<StaleEntry> entries_;                  // guarded by mutex_
  std::thread entry_dropper_;
};

// Raises this process's limit of open descriptors as far as it may, and answers the limit: the file system
// holds one an inode.
size_t RaiseDescriptorLimit();

}  // namespace pmirror::fs
