// SPDX-License-Identifier: BSD-3-Clause
// One object of the volume that the kernel, a handle or a client of the backing file knows.
//
// An inode's life, as far as replication is concerned:
//   named   it has an entry in the tree; changes of it are sent.
//   orphan  it has no entry, but is open (unlinked while open, or O_TMPFILE); the replicas keep it, changes
//   are sent. gone    it has no entry and nobody had it open when the last entry went, or the last one has
//   closed it: the replicas have dropped it.
//           What a program still does to it (through an O_PATH descriptor, a working directory) happens here
//           only.
// Life changes only under the volume's namespace lock (inside Replicator::Change), so that its order is the
// order of the operations.
//
// Lock order: namespace lock, opening_, mutex_. No call out of this class while mutex_ is held.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "fs/backing_root.h"
#include "fs/inode_mode.h"
#include "fs/replicator.h"
#include "replication/deadline.h"

namespace pmirror::fs {

// The backing file of an open inode, shared by all its handles. Handles read and write at offsets only: the
// position is not used.
struct OpenBacking {
  UniqueFd fd;  // O_RDWR, or O_RDONLY where the file cannot be written (immutable, read-only mount, being
                // executed)
  bool writable = false;
  std::shared_ptr<ReplicatedFile> file;  // null when the inode is gone: nothing is replicated
};

class Inode {
 public:
  enum class Life { kNamed, kOrphan, kGone };

  // `path_fd` is kept when `pinned`, else closed and found again through the object's handle.
  // Requires: pinned or root.has_handles().
  Inode(const BackingRoot& root, FileId id, const struct stat& info, UniqueFd path_fd, bool pinned,
        Life life);

  FileId id() const { return id_; }
  ino_t backing_inode() const { return backing_inode_; }
  mode_t type() const { return type_; }
  bool pinned() const { return path_.valid(); }

  // An O_PATH descriptor of the object: the inode's own, or one opened for the occasion.
  class Path {
   public:
    int get() const { return borrowed_ >= 0 ? borrowed_ : owned_.get(); }

   private:
    friend class Inode;
    int borrowed_ = -1;
    UniqueFd owned_;
  };
  Result<Path> OpenPath() const;

  // --- opens: of handles and of clients of the backing file ---
  // Counts a reference; answers the life that the caller must respect. Each is undone by EndOpen, which is
  // true when the caller must give RetireOrphan() a try under the namespace lock.
  Life BeginOpen();
  [[nodiscard]] bool EndOpen();
  // The backing file, opened at the first use. `write`: it must be writable. `fresh_fd`: a descriptor O_RDWR
  // the caller happens to have (it has just created the file). Requires: between BeginOpen and EndOpen.
  Result<std::shared_ptr<OpenBacking>> Backing(Replicator& replicator, bool write, UniqueFd fresh_fd = {});

  // --- life; under the namespace lock ---
  Life life() const;
  // The last entry has gone. True when the inode is an orphan now, false when it is gone.
  bool LoseLastEntry();
  void GainEntry();
  // True when the inode was an orphan that nobody has open any more; it is gone now.
  bool RetireOrphan();

  // --- modes (inode_mode.h) ---
  InodeMode::Opened OpenPlain(pid_t pid, bool for_writing);
  void ClosePlain(pid_t pid);
  // Waits for plain handles to be closed until the deadline: the kernel tells of a close only after the
  // program has gone on.
  int TakeDirect(Deadline deadline, pid_t* holder);
  void DropDirect();
  // False when a plain handle is still open at the deadline.
  bool AwaitPlainClosed(Deadline deadline);
  bool ChangedBesideCache();
  bool direct() const;
  // Programs may have stored to pages that the kernel caches.
  bool MayHaveCachedStores() const;

  // Serialises appends, which ask for the size and then write there.
  std::mutex& append_mutex() { return append_mutex_; }

  // False when the file is known to have neither setuid or setgid bits nor file capabilities, which a write
  // would have to take away.
  std::atomic<bool>& may_have_privileges() { return may_have_privileges_; }

 private:
  Result<std::shared_ptr<OpenBacking>> OpenOnce(Replicator& replicator, bool write, UniqueFd fresh_fd);

  const BackingRoot& root_;
  const FileId id_;
  const ino_t backing_inode_;
  const mode_t type_;  // S_IFMT bits
  UniqueFd path_;
  mutable ObjectHandle handle_;  // only when there is no path_; open_by_handle_at does not change it

  std::mutex opening_;  // held while the backing file is opened and attached

  mutable std::mutex mutex_;
  std::condition_variable plain_closed_;  // with mutex_
  InodeMode mode_;                        // guarded by mutex_
  bool cached_writer_ = false;  // guarded by mutex_: one of the plain handles was, perhaps, for writing
  Life life_;                   // guarded by mutex_
  uint32_t opens_ = 0;          // guarded by mutex_
  std::weak_ptr<OpenBacking> backing_;  // guarded by opening_

  std::mutex append_mutex_;
  std::atomic<bool> may_have_privileges_{true};
};

}  // namespace pmirror::fs
