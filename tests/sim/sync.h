// SPDX-License-Identifier: BSD-3-Clause
// One capture and its way to the members: mirrors replication/replicate.cc (class Sync; the functions carry the names they
// have there) and replication/patience.cc, with a Step() wherever a thread can be interrupted. Real: TakeOrder, FrameFiller,
// MaySucceed, the set word, Sender below.
#pragma once

#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "replication/frame_filler.h"
#include "replication/order_page.h"
#include "replication/replicate.h"
#include "replication/volume_page.h"
#include "tests/sim/disk.h"
#include "tests/sim/session.h"
#include "tests/sim/world.h"

namespace pmirror::sim {

// What the daemon of one mount shares with programs. Lives as long as anybody maps it.
class SharedVolume {
 public:
  explicit SharedVolume(World& world)
      : changed(world.loop),
        page_(static_cast<VolumePage*>(std::calloc(1, sizeof(VolumePage))), &std::free),
        world_(world) {
    page_->on_loss = static_cast<uint32_t>(world.settings.on_loss);
    ConfigureReplicas(*page_, world.settings.replicas);
    page_->state = static_cast<uint32_t>(VolumeState::kServing);
    page_->epoch = 1;
  }
  VolumePage& page() { return *page_; }
  SetWord set() const { return LoadSet(*page_); }
  void SetMembers(uint8_t members, uint8_t joiners);
  // The slot and the counter of a file, made at first use.
  struct File {
    FileSlot* slot = nullptr;
    std::unique_ptr<OrderPage> order;
  };
  File& file(FileId id, uint64_t generation, Time monotonic);

  Signal changed;  // the set word, or a generation

 private:
  std::unique_ptr<VolumePage, decltype(&std::free)> page_;
  World& world_;
  std::map<FileId, File> files_;
  size_t used_ = 0;
};

class Patience {
 public:
  Patience(World& world, bool own_wait) : world_(world), own_wait_(own_wait) { Progress(); }
  void Progress() { limit_ = world_.now() + Period(); }
  bool RanOut();
  Time limit() const { return limit_; }
  Time Slice() const { return Within(20 * kMs); }
  Time Within(Time duration) const { return std::min(limit_, world_.now() + duration); }

 private:
  Time Period() const;
  World& world_;
  const bool own_wait_;  // of the daemon, which does not suspend
  bool suspended_ = false;
  Time limit_ = 0;
};
// No wait of a sync may be longer.
Time LongestSync(const Settings& settings);

class Sync {
 public:
  struct Terms {
    std::vector<Session*> sessions;
    FileId file = FileId::kNone;  // kNone: a barrier alone
    OrderPage* order = nullptr;
    const FileSlot* slot = nullptr;
    std::vector<Extent> extents;
    WaitLevel level = WaitLevel::kDurable;
    bool local = false;
    bool own_wait = false;
    std::optional<size_t> only;
    const DiskFile* snapshot = nullptr;  // planted: bytes that were copied too early
  };
  Sync(World& world, SharedVolume& shared, Disk& disk, Terms terms)
      : world_(world),
        shared_(shared),
        disk_(disk),
        terms_(std::move(terms)),
        patience_(world, terms_.own_wait) {}
  Sync(const Sync&) = delete;
  Sync& operator=(const Sync&) = delete;
  // 0 or an errno.
  Task<int> Run();

 private:
  struct Staged {
    std::vector<WireRange> ranges;
    std::vector<std::byte> payload;
    bool last = false;
  };
  struct Attempt {
    Order order;
    SetWord set;
    uint8_t begun = 0;
    uint8_t alive = 0;
    std::array<CaptureInFlight, kMaxReplicas> captures;
    std::array<Receipt, kMaxReplicas> receipts;
    bool barrier_sent = false;
    uint64_t bytes = 0;
  };
  class Source;

  void Adopt(SetWord set);
  Task<uint8_t> Reachable(uint8_t missing);
  Task<int> Try(SetWord set, uint8_t replicas);
  Task<std::optional<Order>> TakeOrderPatiently();
  Task<> SendAll(Attempt& attempt);
  Task<> SendToEach(Attempt& attempt, FrameToSend frame);
  Task<> SendBarrier(Attempt& attempt);
  Task<SendStatus> AwaitOne(Attempt& attempt, size_t replica);
  int Conclude(Attempt& attempt, size_t replica, SendStatus status);
  Task<> PersistHere();
  bool SizeMoved(const Attempt& attempt) const;
  std::vector<Staged> Copy();

  World& world_;
  SharedVolume& shared_;
  Disk& disk_;
  const Terms terms_;
  Patience patience_;
  uint8_t done_ = 0;
  std::optional<SetWord> seen_;
  bool persisted_ = false;
  bool pause_ = false;
  bool sent_before_ = false;
  uint64_t furthest_ = 0;
  int retries_ = 0;
  Time next_pause_ = kMs;
  std::vector<Staged> old_frames_;  // planted
};

}  // namespace pmirror::sim
