// SPDX-License-Identifier: BSD-3-Clause
// See client_observer.h.
#include "fs/client_observer.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <bit>
#include <cerrno>
#include <chrono>

namespace pmirror::fs {
namespace {

uint64_t WallClock() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::system_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace

ObserverQueue::ObserverQueue() : wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

void ObserverQueue::Push(local::Event event) {
  const std::lock_guard lock(mutex_);
  if (events_.size() == kMaxEvents) {
    ++missed_;
    return;
  }
  event.time_ns = WallClock();
  event.missed = missed_;
  missed_ = 0;
  events_.push_back(event);
  ::eventfd_write(wake_.get(), 1);
}

bool ObserverQueue::Front(local::Event& event) const {
  const std::lock_guard lock(mutex_);
  if (events_.empty()) {
    eventfd_t ignored = 0;
    ::eventfd_read(wake_.get(), &ignored);
    return false;
  }
  event = events_.front();
  return true;
}

void ObserverQueue::Pop() {
  const std::lock_guard lock(mutex_);
  events_.pop_front();
}

// What one volume's page owner tells, as records.
class ClientObserver::OneVolume : public PageListener {
 public:
  OneVolume(ObserverQueue& queue, ClientVolume& volume, uint32_t index)
      : queue_(queue), volume_(volume), index_(index) {
    volume_.Listen(*this);
  }
  ~OneVolume() override { volume_.StopListening(*this); }
  OneVolume(const OneVolume&) = delete;
  OneVolume& operator=(const OneVolume&) = delete;

  void Began(SetWord set, VolumeState state, uint8_t lagging) override {
    lagging_ = lagging;
    Tell(local::EventKind::kState, kMaxReplicas, set, state);
  }
  void SetMoved(SetWord before, SetWord after, VolumeState state) override {
    TellEach(local::EventKind::kRedundancyLost, Covered(before) & ~Covered(after), after, state);
    TellEach(local::EventKind::kRedundancyRestored, Covered(after) & ~Covered(before), after, state);
  }
  void StateChanged(VolumeState state, SetWord set) override {
    local::EventKind kind = local::EventKind::kState;
    if (state == VolumeState::kFenced) {
      kind = local::EventKind::kFenced;
    } else if (state == VolumeState::kClosing) {
      kind = local::EventKind::kClosing;
    }
    Tell(kind, kMaxReplicas, set, state);
  }
  void LagMoved(size_t replica, uint8_t lagging, VolumeState state, SetWord set) override {
    lagging_ = lagging;
    Tell(local::EventKind::kLag, static_cast<uint32_t>(replica), set, state);
  }

 private:
  // Has what is acknowledged, or will have it within its RPO.
  static int Covered(SetWord set) { return set.members() | set.trailing(); }
  void TellEach(local::EventKind kind, int replicas, SetWord set, VolumeState state) {
    for (unsigned left = static_cast<uint8_t>(replicas); left != 0; left &= left - 1) {
      Tell(kind, static_cast<uint32_t>(std::countr_zero(left)), set, state);
    }
  }
  void Tell(local::EventKind kind, uint32_t replica, SetWord set, VolumeState state) {
    local::Event event;
    event.kind = kind;
    event.volume = index_;
    event.replica = replica;
    event.members = set.members();
    event.trailing = set.trailing();
    event.state = static_cast<uint32_t>(state);
    event.lagging = lagging_;
    event.set_version = Raw(set.version());
    queue_.Push(event);
  }

  ObserverQueue& queue_;
  ClientVolume& volume_;
  const uint32_t index_;
  uint8_t lagging_ = 0;  // of the last call that said so; all are made under the page's lock
};

ClientObserver::ClientObserver(RegisteredVolumes& volumes) {
  if (!valid()) {
    return;
  }
  for (const auto& registered : volumes.All()) {
    listeners_.push_back(
        std::make_unique<OneVolume>(queue_, registered->volume, static_cast<uint32_t>(listeners_.size())));
  }
}

ClientObserver::~ClientObserver() = default;

void ClientObserver::Serve(int socket) {
  bool full = false;  // the program has not read what it was sent
  while (SendQueued(socket, full)) {
    pollfd polls[] = {
        {.fd = socket, .events = static_cast<short>(POLLIN | (full ? POLLOUT : 0)), .revents = 0},
        {.fd = full ? -1 : queue_.fd(), .events = POLLIN, .revents = 0}};
    if (::poll(polls, 2, -1) < 0 && errno != EINTR) {
      return;
    }
    if ((polls[0].revents & ~POLLOUT) != 0) {
      return;
    }
  }
}

// False: the program is gone.
bool ClientObserver::SendQueued(int socket, bool& full) {
  full = false;
  local::Event event;
  while (queue_.Front(event)) {
    const ssize_t sent = ::send(socket, &event, sizeof event, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) {
      continue;
    }
    if (sent < 0) {
      full = errno == EAGAIN || errno == ENOBUFS;
      return full;
    }
    queue_.Pop();
  }
  return true;
}

}  // namespace pmirror::fs
