// SPDX-License-Identifier: BSD-3-Clause
// The local daemon has gone and another one may be there: the next sync joins it, with everything that this
// process has mapped (docs/internals/programs.md, "Another daemon").
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>

#include <cerrno>

#include "interpose/kernel.h"
#include "interpose/log.h"
#include "interpose/map_file.h"
#include "interpose/runtime.h"

namespace pmirror::interpose {
namespace {

// Syncs that only have to notice that the daemon is gone are out of the gate by then.
constexpr std::chrono::seconds kGatePatience{1};
constexpr timespec kPause{.tv_sec = 0, .tv_nsec = 20'000'000};

// A sync that waits for a daemon tells it as one that waits for a replica does; but a daemon that is not there
// does not end its wait.
class DaemonAwaited : public SyncObserver {
 public:
  explicit DaemonAwaited(Volume& volume) : volume_(volume) {}
  void Suspended(FileId file) override {
    LogLine(LogLevel::kWarning).Text("a sync waits for the local daemon").Field("file", Raw(file));
  }
  void Resumed(FileId file) override {
    LogLine(LogLevel::kWarning).Text("a sync waits no longer for the local daemon").Field("file", Raw(file));
  }
  void Failed(FileId file, int error) override { volume_.Failed(file, error); }
  void Recaptured() override {}

 private:
  Volume& volume_;
};

}  // namespace

Error Runtime::AwaitDaemon(Volume& volume, FileId file, Attempt attempt) {
  Error result{ENOTCONN, "wait for the local daemon"};
  if (SyncGate::Inside()) {  // a handler: the sync it interrupted stands on what would have to be replaced
    return {EIO, "a sync in a signal handler found the local daemon gone"};
  }
  DaemonAwaited observer(volume);
  Patience patience(volume.page(), observer, file);
  while (IsGone(result) && !patience.RanOut()) {
    const Error linked = Relink();
    result = linked.ok() ? attempt() : Error{ENOTCONN, linked.doing};
    if (IsGone(result)) {
      ::ppoll(nullptr, 0, &kPause, nullptr);
    }
  }
  if (IsGone(result)) {
    result = {EIO, "the local daemon is gone, and none has taken its place in time"};
    patience.Ended(result.code);
  } else {
    patience.Ended(0);  // a failure was told by whoever met it
  }
  return result;
}

Error Runtime::Relink() {
  const SignalGuard guard(map_lock_);
  return RelinkLocked();
}

Error Runtime::RelinkLocked() {
  if (link_.Lives() && unserved_.load(std::memory_order_acquire) == 0) {
    return Error::Ok();
  }
  if (SyncGate::Inside()) {
    return {EAGAIN, "join the local daemon within a sync"};
  }
  if (!gate_.Close(Deadline::After(kGatePatience))) {
    return {EAGAIN, "join the local daemon: other syncs are at work"};
  }
  const Error joined = Rejoin();
  gate_.Open();
  return joined;
}

// Requires: the map lock is held, the gate closed.
Error Runtime::Rejoin() {
  if (!link_.Lives()) {
    link_.Close();
    const Error started = link_.Start(socket_path_, own_descriptors().Single(OwnKind::kTickets),
                                      own_descriptors().Single(OwnKind::kPagemap),
                                      [this](DaemonLink::Answer& answer) { return AcceptMounts(answer); });
    if (!started.ok()) {
      link_.Close();  // it may have said yes before: then a link that lives would mean more than it does
      return started;
    }
    for (uint32_t i = 0; i < files_.limit(); ++i) {
      if (files_.at(i).id.load(std::memory_order_acquire) != 0) {
        files_.at(i).unserved.store(EAGAIN, std::memory_order_release);
      }
    }
    LogLine(LogLevel::kInfo).Text("joined another local daemon").Field("socket", socket_path_);
  }
  uint32_t unserved = 0;
  for (uint32_t i = 0; i < files_.limit(); ++i) {
    FileEntry& entry = files_.at(i);
    const int before = entry.unserved.load(std::memory_order_acquire);
    if (entry.id.load(std::memory_order_acquire) == 0 || before == 0 || before == ESTALE) {
      continue;
    }
    Error served = ServeFile(i);
    Mapping mapping;
    for (uintptr_t at = 0; served.ok() && maps_.Next(at, mapping); at = mapping.end()) {
      served = mapping.file == i ? TellMapped(*this, mapping) : Error::Ok();
    }
    entry.unserved.store(served.code, std::memory_order_release);
    unserved += served.ok() || served.code == ESTALE ? 0 : 1;
    if (!served.ok() && served.code != before) {
      LogLine(LogLevel::kError)
          .Text("the local daemon does not serve a file that is mapped: ")
          .Text(served.doing)
          .Field("file", Raw(entry.file_id()))
          .Field("errno", static_cast<uint64_t>(served.code));
    }
  }
  unserved_.store(unserved, std::memory_order_release);
  if (unserved == 0) {
    PMIRROR_RETURN_IF_ERROR(link_.Ask(local::RequestKind::kRejoined, [](local::Request&) {}));
  }
  return link_.Lives() ? Error::Ok() : Error{ENOTCONN, "join the local daemon: it is gone again"};
}

// The open backing file itself is the proof of what this process may do with it. Also in a forked child, which
// has no other.
Error Runtime::ServeFile(uint32_t file) {
  FileEntry& entry = files_.at(file);
  const Volume& volume = volumes_[entry.volume.load(std::memory_order_relaxed)];
  const int descriptors[] = {own_descriptors().Number(entry.backing.load(std::memory_order_acquire))};
  return link_.Ask(
      local::RequestKind::kOpenBacking, std::span(descriptors).first(descriptors[0] >= 0 ? 1 : 0),
      [&](local::Request& request) {
        request.volume = volume.index();
        request.file = Raw(entry.file_id());
      },
      [&](DaemonLink::Answer& answer) -> Error {
        const local::Reply& reply = *answer.reply;
        OrderPage* order = entry.order.load(std::memory_order_acquire);
        const bool complete = answer.descriptor_count == (reply.writable != 0 ? 2 : 1);
        if (!complete || reply.slot >= kMaxFileSlots || FileId{reply.file} != entry.file_id() ||
            reply.volume != volume.index() || (order != nullptr && reply.writable == 0)) {
          return {EPROTO, "open a backing file again: the reply does not fit"};
        }
        if (order != nullptr && kernel::Mmap(order, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                                             answer.descriptors[1].get(), 0) == MAP_FAILED) {
          return Error::FromErrno("map the order page");
        }
        entry.slot.store(&volume.page().slots[reply.slot], std::memory_order_release);
        return Error::Ok();
      });
}

}  // namespace pmirror::interpose
