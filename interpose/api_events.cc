// SPDX-License-Identifier: BSD-3-Clause
// libpmirror: subscriptions. The descriptor is the socket on which the daemon sends its records: no thread, no
// queue here. Before anything is done with the number, it is looked whether it is still ours: a program may have put
// a file of its own there (trap 14).
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <new>

#include "interpose/api_parts.h"
#include "interpose/describe_volume.h"

using namespace pmirror;             // NOLINT: the C API of it
using namespace pmirror::interpose;  // NOLINT

struct pmirror_subscription {
  Observation observation;
  std::array<std::unique_ptr<MappedPage>, local::kMaxVolumes> pages;
  uint32_t only = UINT32_MAX;  // index of the one volume; else all
  ino_t inode = 0;             // of the socket: tells whether the descriptor is still ours
  bool gone = false;           // told that the daemon is
  uint64_t missed = 0;         // of volumes that were not asked for, too: they share the queue
};

namespace {

static_assert(PMIRROR_EVENT_STATE == static_cast<int>(local::EventKind::kState) &&
              PMIRROR_EVENT_REDUNDANCY_LOST == static_cast<int>(local::EventKind::kRedundancyLost) &&
              PMIRROR_EVENT_REDUNDANCY_RESTORED == static_cast<int>(local::EventKind::kRedundancyRestored) &&
              PMIRROR_EVENT_FENCED == static_cast<int>(local::EventKind::kFenced) &&
              PMIRROR_EVENT_CLOSING == static_cast<int>(local::EventKind::kClosing) &&
              PMIRROR_EVENT_LAG == static_cast<int>(local::EventKind::kLag));

ino_t InodeOf(int fd) {
  struct stat info;
  return ::fstat(fd, &info) == 0 && S_ISSOCK(info.st_mode) ? info.st_ino : 0;
}

bool StillOurs(const pmirror_subscription& subscription) {
  return InodeOf(subscription.observation.socket.get()) == subscription.inode;
}

pmirror_event Described(const pmirror_subscription& subscription, const local::Event& from) {
  pmirror_event event{};
  const VolumePage* page = subscription.pages[from.volume]->get();
  event.kind = static_cast<uint32_t>(from.kind);
  event.replica = from.replica < kMaxReplicas ? static_cast<int32_t>(from.replica) : -1;
  event.state = StateOf(from.state,
                        {.members = from.members,
                         .trailing = from.trailing,
                         .unproven = page->unproven.load(std::memory_order_acquire)},
                        page->required.load(std::memory_order_acquire));
  event.members = from.members;
  event.trailing = from.trailing;
  event.lagging = from.lagging;
  event.set_version = from.set_version;
  event.time_ns = from.time_ns;
  CopyText(event.volume, sizeof(event.volume), subscription.observation.reply.mounts[from.volume].name);
  if (event.replica >= 0) {
    CopyText(event.replica_node, sizeof(event.replica_node), page->replica_names[event.replica]);
  }
  return event;
}

bool Fits(pmirror_event* event) { return event->size >= offsetof(pmirror_event, state); }

int Give(pmirror_subscription& subscription, pmirror_event& full, pmirror_event* event) {
  full.missed = subscription.missed;
  subscription.missed = 0;
  CopyOut(&full, sizeof(full), offsetof(pmirror_event, state), event);
  return 1;
}

int DaemonGone(pmirror_subscription& subscription, pmirror_event* event) {
  if (subscription.gone) {
    errno = ENOTCONN;
    return -1;
  }
  subscription.gone = true;
  pmirror_event full{};
  full.kind = PMIRROR_EVENT_DAEMON_GONE;
  full.replica = -1;
  full.state = PMIRROR_CLOSING;
  return Give(subscription, full, event);
}

}  // namespace

extern "C" {

pmirror_subscription* pmirror_subscribe(const char* volume) try {
  auto made = std::make_unique<pmirror_subscription>();
  if (const int error = Observe(0, made->observation); error != 0) {
    errno = error;
    return nullptr;
  }
  const local::Reply& reply = made->observation.reply;
  for (uint32_t i = 0; i < reply.mount_count; ++i) {
    made->pages[i] = std::make_unique<MappedPage>(made->observation.pages[i]);
    made->observation.pages[i].Reset();
    if (made->pages[i]->get() == nullptr) {
      errno = ENOMEM;
      return nullptr;
    }
    if (volume != nullptr && std::strncmp(reply.mounts[i].name, volume, sizeof(reply.mounts[i].name)) == 0) {
      made->only = i;
    }
  }
  if (volume != nullptr && made->only == UINT32_MAX) {
    errno = ENOENT;
    return nullptr;
  }
  made->inode = InodeOf(made->observation.socket.get());
  return made.release();
} catch (const std::bad_alloc&) {
  errno = ENOMEM;
  return nullptr;
}

int pmirror_subscription_fd(const pmirror_subscription* subscription) {
  return subscription->observation.socket.get();
}

int pmirror_next_event(pmirror_subscription* subscription, pmirror_event* event) {
  if (!Fits(event)) {
    errno = EINVAL;
    return -1;
  }
  if (!StillOurs(*subscription)) {
    errno = EBADF;  // what lies there is the program's
    return -1;
  }
  for (;;) {
    local::Event record;
    const ssize_t got =
        ::recv(subscription->observation.socket.get(), &record, sizeof(record), MSG_DONTWAIT | MSG_TRUNC);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0 && errno == EAGAIN) {
      return 0;
    }
    if (got < 0 && (errno == EBADF || errno == ENOTSOCK)) {
      errno = EBADF;
      return -1;
    }
    const bool whole = got == static_cast<ssize_t>(sizeof(record)) && record.version == local::kVersion &&
                       record.volume < subscription->observation.reply.mount_count;
    if (!whole) {
      return DaemonGone(*subscription, event);
    }
    subscription->missed += record.missed;
    if (subscription->only == UINT32_MAX || subscription->only == record.volume) {
      pmirror_event full = Described(*subscription, record);
      return Give(*subscription, full, event);
    }
  }
}

void pmirror_unsubscribe(pmirror_subscription* subscription) {
  if (subscription != nullptr && !StillOurs(*subscription)) {
    (void)subscription->observation.socket.Release();  // the number is another's by now
  }
  delete subscription;
}
}
