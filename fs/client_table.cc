// SPDX-License-Identifier: BSD-3-Clause
// See client_table.h.
#include "fs/client_table.h"

#include <iterator>

namespace pmirror::fs {
namespace {

static_assert(std::size(TicketTable{}.acknowledged_syncs) == local::kMaxVolumes);

uint64_t SyncsOf(const ClientProcess& process, size_t volume) {
  return process.tickets().acknowledged_syncs[volume].load(std::memory_order_relaxed);
}

pid_t KeyOf(const ClientProcess& process) { return process.adopted() ? -process.pid() : process.pid(); }

}  // namespace

bool ClientTable::Add(const std::shared_ptr<ClientProcess>& process) {
  changes_.fetch_add(1, std::memory_order_seq_cst);
  std::lock_guard lock(mutex_);
  const bool added = processes_.emplace(KeyOf(*process), process).second;
  count_.store(processes_.size(), std::memory_order_release);
  return added;
}

void ClientTable::Remove(const std::shared_ptr<ClientProcess>& process) {
  {
    std::lock_guard lock(mutex_);
    const auto found = processes_.find(KeyOf(*process));
    if (found == processes_.end() || found->second != process) {
      return;
    }
    processes_.erase(found);
    for (size_t volume = 0; !process->adopted() && volume < retired_syncs_.size(); ++volume) {
      retired_syncs_[volume] += SyncsOf(*process, volume);
    }
    count_.store(processes_.size(), std::memory_order_release);
  }
  changes_.fetch_add(1, std::memory_order_seq_cst);
}

std::shared_ptr<ClientProcess> ClientTable::Find(pid_t pid) const {
  std::lock_guard lock(mutex_);
  const auto found = processes_.find(pid);
  return found == processes_.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<ClientProcess>> ClientTable::All() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<ClientProcess>> all;
  all.reserve(processes_.size());
  for (const auto& [pid, process] : processes_) {
    all.push_back(process);
  }
  return all;
}

uint64_t ClientTable::AcknowledgedSyncs(size_t volume) const {
  std::lock_guard lock(mutex_);
  uint64_t sum = retired_syncs_.at(volume);
  for (const auto& [key, process] : processes_) {
    sum += process->adopted() ? 0 : SyncsOf(*process, volume);
  }
  return sum;
}

bool ClientTable::IsAnnounced(pid_t tgid) const {
  const auto serves = [](const std::shared_ptr<ClientProcess>& process) {
    return process != nullptr && !process->ended();
  };
  return serves(Find(tgid)) || serves(FindAdopted(tgid));
}

}  // namespace pmirror::fs
