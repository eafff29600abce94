// SPDX-License-Identifier: BSD-3-Clause
// Applies namespace operations to the backing tree of a replica. It decides nothing: the primary has done the
// operation already.
//
// Every operation can be applied again when a crash came in its middle or right after it (only the one behind
// the recorded high-water mark can be in that state): each first looks whether the tree already shows its
// effect. What contradicts both the state before and the state after is a difference of the copies: ESTALE,
// and nothing is changed.
//
// Not thread-safe: the caller holds the volume's namespace lock. Takes BackingFile::mutex of the object for
// size operations.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "replication/namespace_op.h"
#include "server/backing_index.h"
#include "server/file_table.h"
#include "server/outcome.h"
#include "server/persistence.h"
#include "server/undo_log.h"

namespace pmirror::server {

class NamespaceApplier {
 public:
  // All must outlive the applier. `undo`: what is about to go is told to it; null: nobody.
  NamespaceApplier(BackingIndex& index, FileTable& files, PersistenceDomain& domain, UndoLog* undo = nullptr)
      : index_(index), files_(files), domain_(domain), undo_(undo) {}

  struct Applied {
    Outcome outcome;
    std::shared_ptr<BackingFile> file;  // whose size or storage changed: what a barrier has to make durable
  };
  // `number`: of the operation. The caller records it as applied before it lets frames of a newer size
  // generation in.
  Applied Apply(const NamespaceOp& op, uint64_t number);

 private:
  struct Entry {
    int error = 0;  // of the look-up; ENOENT is exists == false and no error
    bool exists = false;
    FileId id = FileId::kNone;
    uint32_t mode = 0;
    uint64_t links = 0;  // without one among the undo log's kept
    uint64_t size = 0;
  };

  int Dispatch(const NamespaceOp& op);
  int Create(int directory, const char* name, const NamespaceOp& op);
  int Make(int directory, const char* name, const NamespaceOp& op);
  int Complete(int directory, const char* name, const NamespaceOp& op);
  int Link(const NamespaceOp& op);
  int Unlink(const NamespaceOp& op);
  int RemoveDirectory(const NamespaceOp& op);
  int Rename(const NamespaceOp& op);
  int Exchange(int from, int to, const NamespaceOp& op);
  int ForgetOrphan(const NamespaceOp& op);
  int SetAttributes(const NamespaceOp& op);
  int ChangeSize(const NamespaceOp& op, uint64_t number, std::shared_ptr<BackingFile>& file);

  // A directory's O_PATH descriptor, kept open for the next operations; -1 and `error` when there is none.
  // Valid until the next call but one.
  int Directory(FileId id, int& error);
  Entry LookUp(int directory, const char* name) const;
  // The last name of the object is about to go. Returns 0 or an errno: then it must not.
  int Keep(int directory, const char* name, const Entry& entry);
  // The last name of the object is gone.
  void Forget(FileId id);

  BackingIndex& index_;
  FileTable& files_;
  PersistenceDomain& domain_;
  UndoLog* const undo_;
  static constexpr size_t kMaxDirectories = 64;
  std::unordered_map<uint64_t, UniqueFd> directories_;
  uint64_t last_directory_ = 0;  // asked for last: not the one to close
};

}  // namespace pmirror::server
