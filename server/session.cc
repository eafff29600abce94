// SPDX-License-Identifier: BSD-3-Clause
// Holding, cutting and ending of sessions. See session.h.
#include "server/session.h"

#include <sys/socket.h>

namespace pmirror::server {

bool Session::Acquire(int socket, Deadline deadline) {
  std::unique_lock lock(mutex_);
  while (!ended_ && socket_ >= 0) {
    Interrupt();
    if (released_.wait_for(lock, deadline.Remaining()) == std::cv_status::timeout && deadline.Expired() &&
        socket_ >= 0) {
      return false;
    }
  }
  if (ended_) {
    return false;
  }
  socket_ = socket;
  interrupted_ = false;
  Heard();
  return true;
}

void Session::Release() {
  const std::lock_guard lock(mutex_);
  socket_ = -1;
  idle_since_ = Deadline::Now();
  released_.notify_all();
}

void Session::End() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  Interrupt();
  released_.notify_all();
}

bool Session::AwaitRelease(Deadline deadline) {
  std::unique_lock lock(mutex_);
  return released_.wait_for(lock, deadline.Remaining(), [this] { return socket_ < 0; });
}

void Session::Cut() {
  const std::lock_guard lock(mutex_);
  Interrupt();
}

void Session::Interrupt() {
  interrupted_.store(true, std::memory_order_release);
  if (socket_ >= 0) {
    ::shutdown(socket_, SHUT_RDWR);
  }
}

bool Session::ended() const {
  const std::lock_guard lock(mutex_);
  return ended_;
}

bool Session::connected() const {
  const std::lock_guard lock(mutex_);
  return socket_ >= 0;
}

Deadline::Duration Session::idle_since() const {
  const std::lock_guard lock(mutex_);
  return idle_since_;
}

void Session::Grant(FileId file) {
  const std::lock_guard lock(mutex_);
  granted_.insert(Raw(file));
}

void Session::Revoke(FileId file) {
  const std::lock_guard lock(mutex_);
  granted_.erase(Raw(file));
}

bool Session::MayWrite(FileId file) const {
  if (identity.kind == SessionKind::kDaemon) {
    return true;
  }
  const std::lock_guard lock(mutex_);
  return granted_.contains(Raw(file));
}

}  // namespace pmirror::server
