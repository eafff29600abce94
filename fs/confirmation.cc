// SPDX-License-Identifier: BSD-3-Clause
// See confirmation.h.
#include "fs/confirmation.h"

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "recovery/block_checksums.h"
#include "replication/order_page.h"
#include "replication/patience.h"
#include "replication/replica_mask.h"

namespace pmirror::fs {
namespace {

static_assert(kConfirmBytes / kConfirmBlock <= kMaxConfirmBlocks);
// An answer in more pieces than that costs more than it saves.
constexpr size_t kMostPieces = 64 << 10;

constexpr uint64_t BlocksUp(uint64_t bytes) { return (bytes + kConfirmBlock - 1) / kConfirmBlock; }

// What is the same for all questions.
struct Asking {
  FileState& file;
  const VolumePage& page;
  const std::span<DataSession* const> sessions;
  SyncObserver& observer;
  const std::chrono::nanoseconds patience;
  const SetWord set;

  // Nobody has come or left, and the asker still wants to know.
  bool GoesOn() const {
    return LoadSet(page).raw == set.raw && observer.Interrupted(false) == 0 &&
           page.state.load(std::memory_order_acquire) != static_cast<uint32_t>(VolumeState::kFenced);
  }
};

enum class Answered { kYes, kNotThis, kNothing };  // kNotThis: another range may be answered

// One range, asked of each replica at once.
class Question {
 public:
  explicit Question(const Asking& asking) : asking_(asking) {}
  ~Question() {
    ForEach(begun_, [this](size_t replica) { asking_.sessions[replica]->End(captures_[replica]); });
  }
  Question(const Question&) = delete;
  Question& operator=(const Question&) = delete;

  // Adds what every replica holds.
  Answered Ask(Extent range, Confirmed& confirmed);

 private:
  bool Prepare();
  Answered SendToAll(const Order& order, const WireRange& range, std::span<const BlockSum16> sums);
  Answered AwaitFrom(size_t replica, Deadline deadline);

  const Asking& asking_;
  std::array<CaptureInFlight, kMaxReplicas> captures_;
  std::array<ConfirmedBody, kMaxReplicas> answers_{};
  std::array<Receipt, kMaxReplicas> receipts_{};
  ReplicaMask begun_ = 0;
  uint64_t epoch_ = 0;
};

// The connections, before the order number (CaptureInFlight::incarnation).
bool Question::Prepare() {
  epoch_ = asking_.page.epoch.load(std::memory_order_acquire);
  bool all = asking_.set.trailing() == 0 && asking_.set.sent_to() != 0;
  ForEach(asking_.set.sent_to(), [&](size_t replica) {
    DataSession* const session = replica < asking_.sessions.size() ? asking_.sessions[replica] : nullptr;
    all = all && session != nullptr && session->connected() && (session->Abilities() & kCanConfirm) != 0;
    captures_[replica].incarnation = session != nullptr ? session->Incarnation() : 0;
  });
  return all;
}

// The number first, then what the file holds: the other way round a store in between would be lost behind it.
Answered Question::Ask(Extent range, Confirmed& confirmed) {
  if (!Prepare()) {
    return Answered::kNothing;
  }
  const CaptureTarget target = asking_.file.target();
  const std::atomic<uint64_t>& generation = target.slot->size_generation;
  const std::optional<Order> order = TakeOrder(*target.order, generation);
  if (!order.has_value()) {
    return Answered::kNotThis;
  }
  const absl::StatusOr<recovery::BlockChecksums> here =
      recovery::ChecksumBlocks(asking_.file.backing_fd(), range, kConfirmBlock);
  if (!here.ok() || generation.load(std::memory_order_seq_cst) != order->size_generation) {
    return Answered::kNotThis;
  }
  const uint64_t there = here->size < range.offset ? 0 : (here->size - range.offset) / kConfirmBlock;
  const size_t whole = std::min<uint64_t>(here->sums.size(), there);
  if (whole == 0) {
    return Answered::kYes;
  }
  std::vector<BlockSum16> sums(whole);
  std::transform(here->sums.begin(), here->sums.begin() + static_cast<ptrdiff_t>(whole), sums.begin(),
                 [](const recovery::BlockSum& sum) {
                   return BlockSum16{sum.low, sum.high};
                 });
  const Answered answered = SendToAll(*order, {range.offset, whole * kConfirmBlock}, sums);
  confirmed.compared += answered == Answered::kYes ? whole * kConfirmBlock : 0;
  for (size_t block = 0; block < whole && answered == Answered::kYes; ++block) {
    bool same = true;
    ForEach(begun_, [&](size_t replica) { same = same && answers_[replica].is_equal(block); });
    if (same) {
      confirmed.equal.Add({range.offset + block * kConfirmBlock, kConfirmBlock});
    }
  }
  return answered;
}

// To all, then from all.
Answered Question::SendToAll(const Order& order, const WireRange& range, std::span<const BlockSum16> sums) {
  FrameToSend frame;
  frame.kind = FrameKind::kConfirm;
  frame.flags = kFlagAckWanted;
  frame.epoch = Epoch{epoch_};
  frame.set_version = asking_.set.version();
  frame.file = asking_.file.id();
  frame.order = order.number;
  frame.size_generation = order.size_generation;
  frame.ranges = {&range, 1};
  frame.payload = std::as_bytes(sums);
  const Deadline deadline = Deadline::After(
      std::min<Deadline::Duration>(asking_.patience, std::chrono::nanoseconds(asking_.page.deadline_ns / 8)));
  Answered all = Answered::kYes;
  ForEach(asking_.set.sent_to(), [&](size_t replica) {
    CaptureInFlight& capture = captures_[replica];
    capture.file = frame.file;
    capture.order = frame.order;
    capture.confirmed = &answers_[replica];
    frame.capture = &capture;
    asking_.sessions[replica]->Begin(capture);
    begun_ |= Bit(replica);
    if (asking_.sessions[replica]->Send(frame, deadline, receipts_[replica]) != SendStatus::kOk) {
      all = Answered::kNothing;
    }
  });
  ForEach(begun_, [&](size_t replica) {
    if (all != Answered::kNothing) {
      const Answered one = AwaitFrom(replica, deadline);
      all = one == Answered::kYes ? all : one;
    }
  });
  return all;
}

Answered Question::AwaitFrom(size_t replica, Deadline deadline) {
  const Receipt& receipt = receipts_[replica];
  SendStatus status = SendStatus::kTimedOut;
  while (status == SendStatus::kTimedOut && !deadline.Expired() && asking_.GoesOn()) {
    status = asking_.sessions[replica]->Await(
        receipt, WaitLevel::kReceived, &captures_[replica],
        Deadline::After(std::min<Deadline::Duration>(kPageSlice, deadline.Remaining())));
  }
  if (status == SendStatus::kOk) {
    return answers_[replica].sequence == receipt.sequence ? Answered::kYes : Answered::kNothing;
  }
  return status == SendStatus::kRecapture ? Answered::kNotThis : Answered::kNothing;
}

}  // namespace

Confirmed ConfirmBlocks(FileState& file, const ExtentSet& extents, const VolumePage& page,
                        std::span<DataSession* const> sessions, SyncObserver& observer,
                        std::chrono::nanoseconds patience) {
  const Asking asking{file, page, sessions, observer, patience, LoadSet(page)};
  Confirmed confirmed;
  for (const Extent& extent : extents.extents()) {
    uint64_t at = BlocksUp(extent.offset) * kConfirmBlock;
    const uint64_t end = std::min(extent.end() / kConfirmBlock, BlocksUp(file.size())) * kConfirmBlock;
    while (at < end) {
      const Extent range{at, std::min(kConfirmBytes, end - at)};
      if (!asking.GoesOn() || confirmed.equal.extent_count() > kMostPieces ||
          Question(asking).Ask(range, confirmed) == Answered::kNothing) {
        return confirmed;
      }
      at = range.end();
    }
  }
  return confirmed;
}

}  // namespace pmirror::fs
