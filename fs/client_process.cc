// SPDX-License-Identifier: BSD-3-Clause
// See client_process.h.
#include "fs/client_process.h"

#include <sys/socket.h>

#include <algorithm>
#include <utility>

namespace pmirror::fs {

std::shared_ptr<LeasedFile> ClientFiles::Find(const FileKey& key) const {
  const auto lease = leases.find(key);
  if (lease != leases.end() && lease->second->writable) {
    return lease->second;
  }
  std::shared_ptr<LeasedFile> found = lease == leases.end() ? nullptr : lease->second;
  for (const uintptr_t address : mappings.Of(key)) {
    const std::shared_ptr<LeasedFile>& file = mappings.at(address).file;
    if (found == nullptr || file->writable) {
      found = file;
    }
  }
  return found;
}

std::map<FileKey, std::shared_ptr<LeasedFile>> ClientFiles::Writable() const {
  std::map<FileKey, std::shared_ptr<LeasedFile>> writable;
  for (const auto& [key, lease] : leases) {
    if (lease->writable) {
      writable.emplace(key, lease);
    }
  }
  for (const FileKey& key : mappings.Files()) {
    if (writable.contains(key)) {
      continue;
    }
    std::shared_ptr<LeasedFile> file = Find(key);
    if (file->writable) {
      writable.emplace(key, std::move(file));
    }
  }
  return writable;
}

void ClientSession::Cut() const { ::shutdown(socket.get(), SHUT_RDWR); }

bool ClientProcess::HasSession(size_t volume, size_t replica, SessionId id) const {
  std::lock_guard lock(sessions_mutex_);
  return std::any_of(sessions_.begin(), sessions_.end(), [&](const ClientSession& session) {
    return session.volume == volume && session.replica == replica && session.id == id;
  });
}

std::optional<ClientSession> ClientProcess::KeepSession(ClientSession session, SessionId resumed) {
  std::lock_guard lock(sessions_mutex_);
  if (ended()) {
    return session;
  }
  std::erase_if(sessions_, [&](const ClientSession& other) {
    return other.volume == session.volume && other.replica == session.replica &&
           (other.id == session.id || other.id == resumed);
  });
  std::optional<ClientSession> spare;
  const auto same_replica = [&](const ClientSession& other) {
    return other.volume == session.volume && other.replica == session.replica;
  };
  if (static_cast<size_t>(std::count_if(sessions_.begin(), sessions_.end(), same_replica)) >= kMaxSessions) {
    const auto oldest = std::find_if(sessions_.begin(), sessions_.end(), same_replica);
    spare = std::move(*oldest);
    sessions_.erase(oldest);
  }
  sessions_.push_back(std::move(session));
  return spare;
}

std::optional<ClientSession> ClientProcess::DropSession(size_t volume, size_t replica, SessionId id) {
  std::lock_guard lock(sessions_mutex_);
  const auto found = std::find_if(sessions_.begin(), sessions_.end(), [&](const ClientSession& session) {
    return session.volume == volume && session.replica == replica && session.id == id;
  });
  if (found == sessions_.end()) {
    return std::nullopt;
  }
  std::optional<ClientSession> dropped = std::move(*found);
  sessions_.erase(found);
  return dropped;
}

void ClientProcess::CutSession(size_t volume, size_t replica, SessionId id) {
  std::lock_guard lock(sessions_mutex_);
  for (const ClientSession& session : sessions_) {
    if (session.volume == volume && session.replica == replica && session.id == id) {
      session.Cut();
    }
  }
}

std::vector<ClientProcess::SessionName> ClientProcess::SessionsOf(size_t volume) const {
  std::lock_guard lock(sessions_mutex_);
  std::vector<SessionName> names;
  for (const ClientSession& session : sessions_) {
    if (session.volume == volume) {
      names.push_back({session.replica, session.id});
    }
  }
  return names;
}

bool ClientProcess::Suspended(const FileKey& file) {
  std::lock_guard lock(suspended_mutex_);
  if (ended() || suspended_.size() >= kMaxSuspended) {
    return false;
  }
  suspended_.push_back(file);
  return true;
}

bool ClientProcess::Resumed(const FileKey& file) {
  std::lock_guard lock(suspended_mutex_);
  const auto found = std::find(suspended_.begin(), suspended_.end(), file);
  if (found == suspended_.end()) {
    return false;
  }
  suspended_.erase(found);
  return true;
}

std::vector<FileKey> ClientProcess::TakeSuspended() {
  std::lock_guard lock(suspended_mutex_);
  return std::exchange(suspended_, {});
}

std::vector<ClientSession> ClientProcess::TakeSessions() {
  std::lock_guard lock(sessions_mutex_);
  return std::exchange(sessions_, {});
}

}  // namespace pmirror::fs
