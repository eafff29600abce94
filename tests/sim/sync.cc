// SPDX-License-Identifier: BSD-3-Clause
// How sync.h does it.
#include "tests/sim/sync.h"

#include <algorithm>
#include <cerrno>

namespace pmirror::sim {
namespace {

constexpr uint8_t Bit(size_t replica) { return static_cast<uint8_t>(1U << replica); }
constexpr Time kConnectSlice = 100 * kMs;
constexpr Time kLongestPause = 32 * kMs;
constexpr int kRetriesAtOnce = 3;
constexpr int kDaemonDecides = 3;
constexpr Time kDaemonDelay = 300 * kMs;  // 5 s in life, where deadlines are as much longer

int Judge(RefusalCode code) {
  switch (code) {
    case RefusalCode::kNoSpace:
      return ENOSPC;
    case RefusalCode::kOldEpoch:
      return ESTALE;
    case RefusalCode::kRecapture:
    case RefusalCode::kNotGranted:
    case RefusalCode::kBlocked:
      return 0;
    default:
      return EIO;
  }
}

}  // namespace

// --- shared memory ---

void SharedVolume::SetMembers(uint8_t members, uint8_t joiners) {
  const SetWord old = set();
  if (old.members() == members && old.joiners() == joiners) {
    return;
  }
  page_->set = SetWord::Make(members, joiners, SetVersion{Raw(old.version()) + 1}).raw;
  page_->unproven &= members;
  world_.Trace("set: members {:b} joiners {:b}", members, joiners);
  changed.Notify();
}

SharedVolume::File& SharedVolume::file(FileId id, uint64_t generation, Time monotonic) {
  File& file = files_[id];
  if (file.slot == nullptr) {
    file.slot = &page_->slots[used_++];
    file.slot->file = Raw(id);
    file.slot->size_generation = generation;
    file.order = std::make_unique<OrderPage>();
    file.order->next = monotonic * 1000 + 1;
  }
  return file;
}

// --- patience ---

Time LongestSync(const Settings& settings) {
  switch (settings.on_loss) {
    case OnLoss::kProceed:
      return 4 * (kDaemonDecides * settings.deadline + kDaemonDelay);
    case OnLoss::kSuspend:
      return 4 * (settings.deadline + settings.suspend);
    default:
      return 6 * settings.deadline;
  }
}

Time Patience::Period() const {
  if (world_.settings.on_loss == OnLoss::kProceed) {
    return kDaemonDecides * world_.settings.deadline + kDaemonDelay;
  }
  return suspended_ ? world_.settings.suspend : world_.settings.deadline;
}

bool Patience::RanOut() {
  if (world_.now() < limit_) {
    return false;
  }
  if (suspended_ || own_wait_ || world_.settings.on_loss != OnLoss::kSuspend) {
    return true;
  }
  suspended_ = true;
  limit_ = world_.now() + world_.settings.suspend;
  return false;
}

// --- the sync ---

class Sync::Source : public ByteSource {
 public:
  Source(const Disk& disk, const DiskFile* file) : disk_(disk), file_(file) {}
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
    return file_ == nullptr ? 0 : disk_.Read(*file_, extent, out);
  }

 private:
  const Disk& disk_;
  const DiskFile* file_;
};

Task<int> Sync::Run() {
  while (true) {
    const SetWord set = world_.Has(Planted::kSetNotReadAgain) && seen_.has_value() ? *seen_ : shared_.set();
    Adopt(set);
    const auto considered = terms_.only.has_value() ? Bit(*terms_.only) : uint8_t{UINT8_MAX};
    const auto joiners =
        world_.Has(Planted::kJoinerNotWaitedFor) && !terms_.only.has_value() ? 0 : set.joiners();
    const auto missing = static_cast<uint8_t>((set.members() | joiners) & considered & ~done_);
    const bool may = terms_.only.has_value() || world_.Has(Planted::kSuccessWithoutMembers) ||
                     MaySucceed(shared_.page(), set);
    if (missing == 0 && may) {
      co_await PersistHere();
      co_return 0;
    }
    if (patience_.RanOut()) {
      co_return EIO;
    }
    const uint8_t reachable = co_await Reachable(missing);
    pause_ = reachable == 0;
    if (reachable != 0) {
      const int error = co_await Try(set, reachable);
      if (error != 0) {
        co_return error;
      }
    }
    co_await PersistHere();
    if (pause_) {
      next_pause_ = std::min(2 * next_pause_, kLongestPause);
      co_await shared_.changed.Wait(patience_.Within(next_pause_));
    }
    co_await world_.loop.Step();
  }
}

void Sync::Adopt(SetWord set) {
  if (seen_.has_value() && seen_->version() == set.version()) {
    return;
  }
  if (!seen_.has_value() || Raw(set.version()) != Raw(seen_->version()) + 1) {
    done_ = 0;
  }
  done_ &= static_cast<uint8_t>(set.members() | set.joiners());
  seen_ = set;
  furthest_ = 0;
  next_pause_ = kMs;
}

Task<uint8_t> Sync::Reachable(uint8_t missing) {
  uint8_t reachable = 0;
  for (size_t i = 0; i < terms_.sessions.size(); ++i) {
    if ((missing & Bit(i)) != 0 && terms_.sessions[i]->connected()) {
      reachable |= Bit(i);
    }
  }
  if (reachable != 0) {
    co_return reachable;
  }
  for (size_t i = 0; i < terms_.sessions.size(); ++i) {
    if ((missing & Bit(i)) != 0) {
      const int error = co_await terms_.sessions[i]->EnsureConnected(patience_.Within(kConnectSlice));
      reachable |= error == 0 ? Bit(i) : 0;
    }
  }
  co_return reachable;
}

Task<int> Sync::Try(SetWord set, uint8_t replicas) {
  Attempt attempt;
  attempt.set = set;
  attempt.alive = replicas;
  for (size_t i = 0; i < terms_.sessions.size(); ++i) {
    attempt.captures[i].incarnation = terms_.sessions[i]->incarnation();
  }
  co_await world_.loop.Step();
  const bool early = world_.Has(Planted::kCopyBeforeNumber);
  std::vector<Staged> copied;
  if (early) {
    copied = Copy();
    co_await world_.loop.Step();
  }
  if (!terms_.extents.empty()) {
    const std::optional<Order> order = co_await TakeOrderPatiently();
    if (!order.has_value()) {
      co_return 0;
    }
    attempt.order = *order;
  }
  co_await world_.loop.Step();
  for (size_t i = 0; i < terms_.sessions.size(); ++i) {
    if ((replicas & Bit(i)) != 0) {
      attempt.captures[i].file = terms_.file;
      attempt.captures[i].order = attempt.order.number;
      terms_.sessions[i]->Begin(attempt.captures[i]);
    }
  }
  attempt.begun = replicas;
  old_frames_ = early ? copied : old_frames_;
  co_await SendAll(attempt);
  sent_before_ = true;
  co_await PersistHere();
  int error = 0;
  for (size_t i = 0; i < terms_.sessions.size(); ++i) {
    if ((attempt.begun & Bit(i)) == 0) {
      continue;
    }
    SendStatus status = SendStatus::kTimedOut;
    if (error == 0 && (attempt.alive & Bit(i)) != 0) {
      status = co_await AwaitOne(attempt, i);
    }
    terms_.sessions[i]->End(attempt.captures[i]);
    if (error == 0) {
      error = Conclude(attempt, i, status);
    }
  }
  co_return error;
}

Task<std::optional<Order>> Sync::TakeOrderPatiently() {
  while (true) {
    const std::optional<Order> order = TakeOrder(*terms_.order, terms_.slot->size_generation);
    if (order.has_value()) {
      co_return order;
    }
    if (patience_.RanOut()) {
      co_return std::nullopt;
    }
    co_await shared_.changed.Wait(patience_.Slice());
  }
}

bool Sync::SizeMoved(const Attempt& attempt) const {
  return terms_.slot->size_generation != attempt.order.size_generation &&
         !world_.Has(Planted::kGenerationNotCompared);
}

// All at once; SendAll copies frame by frame.
std::vector<Sync::Staged> Sync::Copy() {
  Source source(disk_, terms_.snapshot != nullptr ? terms_.snapshot : disk_.Find(terms_.file));
  FrameFiller filler(terms_.extents, source);
  std::vector<Staged> frames;
  alignas(16) static thread_local std::array<std::byte, 64 << 10> staging;
  while (frames.empty() || !frames.back().last) {
    const Result<StagedFrame> staged = filler.Fill(staging, 32 << 10);
    frames.push_back({.ranges = {staged.value().ranges.begin(), staged.value().ranges.end()},
                      .payload = {staged.value().payload.begin(), staged.value().payload.end()},
                      .last = staged.value().last});
  }
  return frames;
}

Task<> Sync::SendAll(Attempt& attempt) {
  const bool old = (world_.Has(Planted::kResentAfterReconnect) || world_.Has(Planted::kCopyBeforeNumber)) &&
                   !old_frames_.empty() && old_frames_.back().last && !terms_.extents.empty();
  if (!old) {
    old_frames_.clear();
  }
  size_t next_old = 0;
  Source source(disk_, terms_.snapshot != nullptr ? terms_.snapshot : disk_.Find(terms_.file));
  FrameFiller filler(terms_.extents, source);
  std::vector<std::byte> staging(32 << 10);
  bool last = terms_.extents.empty();
  while (!last && attempt.alive != 0) {
    Staged frame_data;
    if (old) {
      frame_data = old_frames_[next_old++];
    } else {
      size_t budget = world_.rng().Chance(300) ? 4300 : staging.size();
      for (size_t i = 0; i < terms_.sessions.size(); ++i) {
        budget = (attempt.alive & Bit(i)) != 0 ? std::min(budget, terms_.sessions[i]->FrameBudget()) : budget;
      }
      const Result<StagedFrame> staged = filler.Fill(staging, std::max(budget, kMinFrameBudget));
      frame_data = {.ranges = {staged.value().ranges.begin(), staged.value().ranges.end()},
                    .payload = {staged.value().payload.begin(), staged.value().payload.end()},
                    .last = staged.value().last};
      if (world_.Has(Planted::kResentAfterReconnect)) {
        old_frames_.push_back(frame_data);
      }
    }
    co_await world_.loop.Step();
    if (world_.rng().Chance(80)) {
      co_await world_.loop.Sleep(world_.rng().Between(50, 4000));  // the thread was held up
    }
    if (SizeMoved(attempt)) {
      attempt.alive = 0;
      co_return;
    }
    if (!world_.Has(Planted::kSetNotComparedAfterCopy)) {
      const SetWord now = shared_.set();
      attempt.alive &= static_cast<uint8_t>(now.members() | now.joiners());
    }
    last = frame_data.last;
    if (frame_data.payload.empty()) {
      continue;
    }
    FrameToSend frame;
    frame.kind = FrameKind::kDataImage;
    frame.file = terms_.file;
    frame.order = attempt.order.number;
    frame.size_generation = attempt.order.size_generation;
    frame.ranges = frame_data.ranges;
    frame.payload = frame_data.payload;
    frame.flags = sent_before_ ? kFlagRecaptured : 0;
    if (!last) {
      frame.flags |= kFlagContinues;
    } else {
      frame.flags |= terms_.level == WaitLevel::kDurable ? kFlagAckWanted | kFlagBarrier : kFlagAckWanted;
      attempt.barrier_sent = true;
    }
    co_await SendToEach(attempt, frame);
    attempt.bytes += frame.payload.size();
    if (attempt.bytes > furthest_) {
      furthest_ = attempt.bytes;
      patience_.Progress();
    }
  }
  co_await SendBarrier(attempt);
}

Task<> Sync::SendBarrier(Attempt& attempt) {
  const bool nothing_to_ask = terms_.level == WaitLevel::kReceived && attempt.bytes == 0;
  if (attempt.barrier_sent || nothing_to_ask) {
    co_return;
  }
  FrameToSend frame;
  frame.kind = FrameKind::kBarrier;
  frame.flags = kFlagAckWanted;
  frame.file = terms_.file;
  co_await SendToEach(attempt, frame);
}

Task<> Sync::SendToEach(Attempt& attempt, FrameToSend frame) {
  frame.epoch = Epoch{1};
  frame.set_version = attempt.set.version();
  for (size_t i = 0; i < terms_.sessions.size(); ++i) {
    if ((attempt.alive & Bit(i)) == 0) {
      continue;
    }
    frame.capture = &attempt.captures[i];
    SendStatus status = SendStatus::kOk;
    do {
      status = co_await terms_.sessions[i]->Send(frame, patience_.limit(), attempt.receipts[i]);
    } while (status == SendStatus::kPeerCongested && !patience_.RanOut());
    if (status != SendStatus::kOk) {
      attempt.alive &= static_cast<uint8_t>(~Bit(i));
    }
    co_await world_.loop.Step();
  }
}

Task<SendStatus> Sync::AwaitOne(Attempt& attempt, size_t replica) {
  Session& session = *terms_.sessions[replica];
  const Receipt receipt = attempt.receipts[replica];
  if (receipt.sequence == 0) {
    co_return SendStatus::kOk;
  }
  Sequence reached = 0;
  while (true) {
    const SendStatus status =
        co_await session.Await(receipt, terms_.level, &attempt.captures[replica], patience_.Slice());
    if (status != SendStatus::kTimedOut) {
      co_return status;
    }
    const Sequence received = std::min(session.received(), receipt.sequence);
    if (received > reached) {
      reached = received;
      patience_.Progress();
    }
    const SetWord set = shared_.set();
    const bool wanted = ((set.members() | set.joiners()) & Bit(replica)) != 0;
    if (!wanted || patience_.RanOut()) {
      co_return SendStatus::kTimedOut;
    }
  }
}

int Sync::Conclude(Attempt& attempt, size_t replica, SendStatus status) {
  const CaptureInFlight& capture = attempt.captures[replica];
  if (status == SendStatus::kOk) {
    done_ |= Bit(replica);
    return 0;
  }
  if (capture.status == SendStatus::kRefused) {
    pause_ = true;
    const RefusalCode code{capture.refusal.code};
    // Under proceed until the daemon has taken that replica out.
    const bool waits = world_.settings.on_loss == OnLoss::kProceed && code != RefusalCode::kNoSuchFile;
    return waits ? 0 : Judge(code);
  }
  if (capture.status == SendStatus::kRecapture) {
    old_frames_.clear();
  }
  ++retries_;
  pause_ = pause_ || retries_ > kRetriesAtOnce;
  return 0;
}

Task<> Sync::PersistHere() {
  if (!terms_.local || persisted_ || world_.Has(Planted::kLocalNotPersisted)) {
    co_return;
  }
  persisted_ = true;
  const FileId files[1] = {terms_.file};
  const Disk::Flush flush = disk_.BeginFlush(files);
  co_await world_.loop.Sleep(world_.rng().Between(20, 300));
  disk_.EndFlush(flush);
}

}  // namespace pmirror::sim
