// SPDX-License-Identifier: BSD-3-Clause
// The programs that are registered now. Thread-safe; its lock is a leaf and held for a few instructions (client_process.h).
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "fs/client_process.h"
#include "fs/open_oracle.h"
#include "replication/local_protocol.h"

namespace pmirror::fs {

class ClientTable : public OpenOracle {
 public:
  // False when a process of that pid is there.
  [[nodiscard]] bool Add(const std::shared_ptr<ClientProcess>& process);
  // Its acknowledged syncs stay counted.
  void Remove(const std::shared_ptr<ClientProcess>& process);

  // Null when there is none.
  std::shared_ptr<ClientProcess> Find(pid_t pid) const;
  // The same among those that have not said hello; a pid may be of one that has, too.
  std::shared_ptr<ClientProcess> FindAdopted(pid_t pid) const { return Find(-pid); }
  std::vector<std::shared_ptr<ClientProcess>> All() const;
  // Grows before each Add and after each Remove.
  uint64_t changes() const { return changes_.load(std::memory_order_seq_cst); }

  // Syncs that programs, also those that have ended, got acknowledged on a volume. What a live program says of itself is believed.
  uint64_t AcknowledgedSyncs(size_t volume) const;

  bool AnyAnnounced() const override { return count_.load(std::memory_order_acquire) != 0; }
  bool IsAnnounced(pid_t tgid) const override;

 private:
  mutable std::mutex mutex_;
  // By pid, of an adopted one by -pid. Guarded by mutex_.
  std::map<pid_t, std::shared_ptr<ClientProcess>> processes_;
  std::array<uint64_t, local::kMaxVolumes> retired_syncs_{};  // guarded by mutex_
  std::atomic<size_t> count_{0};                              // of processes_
  std::atomic<uint64_t> changes_{0};
};

}  // namespace pmirror::fs
