// SPDX-License-Identifier: BSD-3-Clause
// What the file system asks of replication. The file system does the local work and says what it did; the
// implementation (fs/volume_replicator.h) gives it a place in the one order, sends it, and waits as the
// volume's policy says.
//
// All calls are thread-safe, may block until the volume's deadline, and return 0 or an errno. When a call
// fails after the local work was done, what was done stays queued (namespace) or dirty (data): the next sync
// carries it, nothing is forgotten.
#pragma once

#include <memory>

#include "absl/functional/function_ref.h"
#include "replication/namespace_op.h"
#include "replication/types.h"

namespace pmirror::fs {

// The replication state of one regular file that is open on the primary. Shared by all its handles and
// mappings.
class ReplicatedFile {
 public:
  virtual ~ReplicatedFile() = default;
  virtual FileId id() const = 0;
};

class Replicator {
 public:
  virtual ~Replicator() = default;

  // Runs `local_change` on the calling thread under the volume's namespace lock. It returns 0 and fills `op`
  // when it changed the tree, or an errno when there is nothing to send: nothing changed, or (ECANCELED) what
  // changed is no longer part of the volume. That errno is handed back. Returns when every in-sync replica
  // has received the operation. `local_change` calls back only NewId and Adopted.
  using LocalChange = absl::FunctionRef<int(NamespaceOp& op)>;
  virtual int Change(LocalChange local_change) = 0;

  // The same, under the same lock, for an operation that changes the size of `file` or punches it (kTruncate,
  // kAllocate). Serialised with all other changes of the file's size, under an odd size generation; fills
  // op.generation itself.
  virtual int ChangeSize(ReplicatedFile& file, LocalChange local_change) = 0;

  // Attaches replication state to an open regular file; null when that fails. Takes no namespace lock.
  // `backing_fd` is duplicated; it must be open for reading, and for writing where the backing file allows
  // it. The same object is returned for the same id while somebody holds it.
  virtual std::shared_ptr<ReplicatedFile> Attach(FileId id, int backing_fd) = 0;

  // Somebody is about to be able to store to the file: called before the first store, and again whenever it is opened for writing. An
  // errno: it must not be written to.
  virtual int BeforeWriting(ReplicatedFile& file) {
    (void)file;
    return 0;
  }

  // Around the local part of a write and the call of Written or WrittenDurably that reports it, so that a frozen volume does not change, and
  // that of one which is not frozen it is known which files may change. `file` null: one that is not replicated.
  // Requires: no other call of this interface but those two in between.
  virtual void BeginWrite(ReplicatedFile* file) { (void)file; }
  virtual void EndWrite(ReplicatedFile* file) { (void)file; }

  // Says that the local file changed in `extent` (write, copy_file_range). Returns when every in-sync replica
  // has received the bytes.
  virtual int Written(ReplicatedFile& file, Extent extent) = 0;

  // Written and Sync in one, for handles with O_SYNC, O_DSYNC or O_DIRECT; an implementation may save a round
  // trip.
  using LocalSync = absl::FunctionRef<int()>;
  virtual int WrittenDurably(ReplicatedFile& file, Extent extent, LocalSync local_sync) {
    const int error = Written(file, extent);
    return error != 0 ? error : Sync(file, /*data_only=*/true, local_sync);
  }

  // fsync, fdatasync: everything stored to the file before, by handles and by the mappings of every process,
  // is durable here and on every in-sync replica. `local_sync` makes the backing file durable; it runs while
  // the replicas work. Callers at the same time with equal `data_only` may share one `local_sync`.
  virtual int Sync(ReplicatedFile& file, bool data_only, LocalSync local_sync) = 0;

  // fsync of a directory, syncfs: every namespace change before is durable here and on every in-sync replica,
  // and for syncfs every file.
  virtual int SyncTree(LocalSync local_sync) = 0;
  virtual int SyncVolume(LocalSync local_sync) = 0;

  // A new id for an object that is about to be created. Does not block; is also called inside a local change.
  virtual FileId NewId() = 0;

  // The object at (parent, name) had no id, or another object's, and has been given `id`: somebody put it
  // into the backing tree behind pmirror's back, or a crash cut its creation. No replica knows it. May be
  // called inside a local change, so it only takes notice.
  virtual void Adopted(FileId parent, const char* name, FileId id) {
    (void)parent;
    (void)name;
    (void)id;
  }
};

}  // namespace pmirror::fs
