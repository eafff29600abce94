// SPDX-License-Identifier: BSD-3-Clause
// The questions to the members, one after the other; see verify.h.
#include "replication/verify.h"

#include <bit>
#include <cerrno>

#include "replication/crc32c.h"
#include "replication/futex_mutex.h"
#include "replication/patience.h"
#include "replication/signal_guard.h"

namespace pmirror {
namespace {

using Verdict = VerifyResult::Verdict;

constexpr std::chrono::milliseconds kConnectSlice{1000};  // one try, after which the page is looked at again
constexpr std::chrono::milliseconds kPause{20};           // between tries

class Verification {
 public:
  Verification(const VolumePage& page, std::span<DataSession* const> sessions, const VerifyRequest& request,
               Patience& patience, VerifyResult& result)
      : page_(page), sessions_(sessions), request_(request), patience_(patience), result_(result) {}

  Error Run();

 private:
  Error Ask(size_t replica);
  Error Judge(size_t replica, const CaptureInFlight& asked);
  void Compare(size_t replica);
  bool Member(size_t replica) const { return ((LoadSet(page_).members() >> replica) & 1) != 0; }
  bool Fenced() const {
    return page_.state.load(std::memory_order_acquire) == static_cast<uint32_t>(VolumeState::kFenced);
  }

  const VolumePage& page_;
  const std::span<DataSession* const> sessions_;
  const VerifyRequest& request_;
  Patience& patience_;
  VerifyResult& result_;
  std::array<WireRange, kMaxVerifyRanges> ranges_;
  std::array<uint32_t, kMaxVerifyRanges> crcs_;
  uint32_t count_ = 0;
  VerifiedBody verified_{};
};

Error Verification::Run() {
  uint64_t bytes = 0;
  for (const CopiedExtent& copied : request_.copied) {
    if (!copied.extent.empty()) {
      if (count_ == ranges_.size()) {
        return {E2BIG, "verify: too many ranges at once"};
      }
      ranges_[count_] = {copied.extent.offset, copied.extent.length};
      crcs_[count_++] = copied.crc;
      bytes += copied.extent.length;
    }
  }
  if (bytes > kMaxVerifyBytes) {
    return {E2BIG, "verify: too many bytes at once"};
  }
  result_ = {};
  for (unsigned left = LoadSet(page_).members(); left != 0; left &= left - 1) {
    const auto replica = static_cast<size_t>(std::countr_zero(left));
    if (replica >= sessions_.size() || sessions_[replica] == nullptr) {
      continue;
    }
    PMIRROR_RETURN_IF_ERROR(Ask(replica));
    if (result_.verdict == Verdict::kDiffers || result_.verdict == Verdict::kAgain) {
      return Error::Ok();
    }
  }
  return Error::Ok();
}

// One question to one replica; one that has left the set meanwhile is passed over.
Error Verification::Ask(size_t replica) {
  if (count_ == 0) {  // the file has ended before all of it
    result_.verdict = Verdict::kEqual;
    return Error::Ok();
  }
  DataSession& session = *sessions_[replica];
  while (!session.connected()) {
    if (!Member(replica)) {
      return Error::Ok();
    }
    const Error connected = session.EnsureConnected(patience_.Within(kConnectSlice));
    if (connected.code == ESTALE || Fenced()) {
      return {ESTALE, "verify: another node is or may be primary"};
    }
    if (!connected.ok() && patience_.RanOut()) {
      result_.replica = replica;
      return {patience_.error(), "verify: no connection to the replica within the deadline"};
    }
    if (!connected.ok()) {
      const SignalWindow window(SignalWindow::kNow);
      FutexWait(&page_.set, static_cast<uint32_t>(LoadSet(page_).raw), patience_.Within(kPause),
                FutexScope::kShared);
    }
  }
  CaptureInFlight asked;
  asked.verified = &verified_;
  verified_ = {};
  FrameToSend frame;
  frame.kind = FrameKind::kVerify;
  frame.flags = kFlagAckWanted;
  frame.epoch = Epoch{page_.epoch.load(std::memory_order_acquire)};
  frame.set_version = LoadSet(page_).version();
  frame.file = request_.file;
  frame.ranges = std::span(ranges_).first(count_);
  frame.capture = &asked;
  Receipt receipt;
  session.Begin(asked);
  SendStatus status = session.Send(frame, patience_.limit(), receipt);
  while (status == SendStatus::kOk) {
    status = session.Await(receipt, WaitLevel::kReceived, &asked, patience_.Slice());
    if (status != SendStatus::kTimedOut || !Member(replica) || Fenced() || patience_.RanOut()) {
      break;
    }
    status = SendStatus::kOk;
  }
  session.End(asked);  // nobody writes to `verified_` from here on
  switch (status) {
    case SendStatus::kOk:
      if (verified_.sequence != receipt.sequence || verified_.range_count != count_) {
        return {EPROTO, "verify: the replica acknowledged without an answer"};
      }
      Compare(replica);
      return Error::Ok();
    case SendStatus::kRefused:
      return Judge(replica, asked);
    case SendStatus::kLost:
    case SendStatus::kRecapture:
      result_.verdict = Verdict::kAgain;
      return Error::Ok();
    default:
      break;
  }
  if (!Member(replica)) {
    return Error::Ok();
  }
  if (Fenced()) {
    return {ESTALE, "verify: another node is or may be primary"};
  }
  result_.replica = replica;
  return {patience_.error(), "verify: no answer from the replica within the deadline"};
}

Error Verification::Judge(size_t replica, const CaptureInFlight& asked) {
  result_.replica = replica;
  switch (RefusalCode{asked.refusal.code}) {
    case RefusalCode::kIoError:
      return {EIO, "verify: the replica could not read the bytes back"};
    case RefusalCode::kNoSuchFile:
      return {EIO, "verify: the replica has no such file"};
    case RefusalCode::kOldEpoch:
      return {ESTALE, "verify: the replica follows a newer primary"};
    default:  // not granted: after a restart of the replica the daemon grants again
      result_.verdict = Verdict::kAgain;
      return Error::Ok();
  }
}

void Verification::Compare(size_t replica) {
  if (verified_.order != request_.order) {  // newer; or the replica was restarted, and remembers none
    result_.verdict = Verdict::kAgain;
    return;
  }
  for (uint32_t i = 0; i < count_; ++i) {
    if (verified_.crc[i] != crcs_[i]) {
      result_ = {
          .verdict = Verdict::kDiffers, .replica = replica, .extent = {ranges_[i].offset, ranges_[i].length}};
      return;
    }
  }
  result_.verdict = Verdict::kEqual;
}

}  // namespace

ChecksummedSource::ChecksummedSource(ByteSource& source, std::span<const Extent> extents)
    : source_(source), extents_(extents) {
  for (size_t i = 0; i < extents_.size(); ++i) {
    copied_[i].extent.offset = extents_[i].offset;
  }
}

Result<size_t> ChecksummedSource::Copy(Extent extent, std::span<std::byte> out) {
  const Result<size_t> copied = source_.Copy(extent, out);
  if (!copied.ok()) {
    return copied;
  }
  for (size_t i = 0; i < extents_.size(); ++i) {
    CopiedExtent& kept = copied_[i];
    if (i == 0 && extent.offset == kept.extent.offset) {  // a capture begins
      for (CopiedExtent& each : copied_) {
        each.extent.length = 0;
        each.crc = 0;
      }
    }
    if (kept.extent.end() == extent.offset && extent.end() <= extents_[i].end()) {
      kept.crc = Crc32c(kept.crc, out.first(copied.value()));
      kept.extent.length += copied.value();
      break;
    }
  }
  return copied;
}

Error Verify(const VolumePage& page, std::span<DataSession* const> sessions, SyncObserver& observer,
             const VerifyRequest& request, VerifyResult& result) {
  const SignalBlock block;
  Patience patience(page, observer, request.file);
  const Error error = Verification(page, sessions, request, patience, result).Run();
  patience.Ended(error.code);
  return error;
}

}  // namespace pmirror
