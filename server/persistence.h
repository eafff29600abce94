// SPDX-License-Identifier: BSD-3-Clause
// The persistence domain of a replica's backing directory: how bytes are written, and what a barrier does
// (replication/persistence.h names the domains).
//
// Contract, the same for all (tests/unit/server/persistence_contract_test.cc):
//   - Write() stores the pieces; readers of the file see the bytes when it returns. In the pmem domain
//     aligned 8-byte words inside a piece are never torn. Elsewhere the kernel copies: not torn either,
//     except that an interrupt or a page fault in the middle of its copy was measured to tear a word for a
//     moment, which only a power cut during the writeback of that very page can catch. A journal in front of
//     the file closes that.
//   - After Persist(files, ...) has returned 0, what was written to `files` before the call survives whatever
//     the domain is declared to survive, sizes included; with `tree` also every namespace operation of which
//     TreeChanged() was told before.
//   - A failure of Persist is for ever: see GroupSync.
// Thread-safe. Concurrent barriers share the work.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "replication/persistence.h"
#include "server/backing_file.h"

namespace pmirror::server {

class PersistenceDomain {
 public:
  // `directory`: the backing root; must outlive the domain.
  static std::unique_ptr<PersistenceDomain> Create(Domain domain, int directory);
  virtual ~PersistenceDomain() = default;

  virtual Domain kind() const = 0;

  // Writes pieces of `payload`. Returns 0 or an errno. Requires: file.mutex is held, file.fd is open, the
  // pieces have storage (DataApplier reserves it).
  virtual int Write(BackingFile& file, std::span<const ApplyPiece> pieces,
                    std::span<const std::byte> payload) = 0;

  // A namespace operation was applied.
  virtual void TreeChanged() = 0;
  // An operation changed this file's size or storage. Requires: file.mutex is held.
  virtual void SizeChanged(BackingFile& file) = 0;

  // Returns 0 or an errno. Requires: no BackingFile::mutex is held.
  virtual int Persist(std::span<const std::shared_ptr<BackingFile>> files, bool tree) = 0;
  // The same for the bytes and the size of one file, for whoever holds its lock. Requires: file.mutex is held, file.fd is
  // open.
  virtual int PersistHeld(BackingFile& file) = 0;
  // The same for every file and the tree.
  virtual int PersistEverything() = 0;
};

}  // namespace pmirror::server
