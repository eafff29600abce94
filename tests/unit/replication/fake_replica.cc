// SPDX-License-Identifier: BSD-3-Clause
// See fake_replica.h.
#include "tests/unit/replication/fake_replica.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "replication/crc32c.h"
#include "replication/signal_guard.h"
#include "tests/unit/replication/stream_pair.h"

namespace pmirror {

using Lock = std::lock_guard<std::recursive_mutex>;

struct FakeReplica::Serving {
  SessionId session{};
  Sequence received = 0;
  Sequence durable = 0;
  uint64_t operation = 0;  // applied on this connection
  uint64_t operation_durable = 0;
  uint64_t consumed = 0;
  uint64_t granted = 0;
  uint64_t window = 0;
};

FakeReplica::~FakeReplica() {
  {
    const Lock lock(mutex_);
    ending_ = true;
    for (const int socket : open_sockets_) {
      ::shutdown(socket, SHUT_RDWR);
    }
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

Result<Connector::Connection> FakeReplica::Connect(SessionId session, Sequence next_sequence, Deadline) {
  const SignalBlock block;  // the threads it makes inherit that, too
  const Lock lock(mutex_);
  if (connect_error_ != 0) {
    return Error{connect_error_, "connect to the fake"};
  }
  auto [near, far] = link_ == Link::kUnix   ? UnixPair()
                     : link_ == Link::kTcp4 ? TcpPair(AF_INET)
                                            : TcpPair(AF_INET6);
  const SessionId id = session == SessionId{} ? SessionId{next_session_++} : session;
  if (next_sequence <= received_[Raw(id)]) {
    ++faults_;
  }
  const Sequence resumed = received_[Raw(id)];
  received_[Raw(id)] = next_sequence - 1;
  current_[Raw(id)] = ++connects_;
  open_sockets_.push_back(far.get());
  threads_.emplace_back(
      [this, id, number = connects_, socket = far.Release()] { Serve(UniqueFd(socket), id, number); });
  changed_.notify_all();
  return Connection{.socket = std::move(near),
                    .session = id,
                    .resumed = {.received_sequence = resumed,
                                .durable_sequence = resumed,
                                .operation_received = 0,
                                .credit_limit = window_},
                    .abilities = abilities_};
}

bool FakeReplica::ReadFully(int socket, void* to, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    size_t want = bytes - done;
    {
      std::unique_lock<std::recursive_mutex> lock(mutex_);
      changed_.wait(lock, [this] { return !paused_ || ending_; });
      want = std::min<uint64_t>(want, cut_after_);
      if (want == 0 || ending_) {
        cut_after_ = UINT64_MAX;
        return false;
      }
    }
    const ssize_t count = ::recv(socket, static_cast<char*>(to) + done, want, 0);
    if (count <= 0) {
      return false;
    }
    done += static_cast<size_t>(count);
    const Lock lock(mutex_);
    if (cut_after_ != UINT64_MAX) {
      cut_after_ -= std::min<uint64_t>(cut_after_, static_cast<uint64_t>(count));
    }
  }
  return true;
}

bool FakeReplica::ReadFrame(int socket, Frame& frame) {
  if (!ReadFully(socket, &frame.header, sizeof frame.header)) {
    return false;
  }
  if (CheckHeader(frame.header) != HeaderFault::kOk) {
    const Lock lock(mutex_);
    ++faults_;
    return false;
  }
  frame.ranges.resize(frame.header.range_count);
  frame.payload.resize(frame.header.payload_length);
  return ReadFully(socket, frame.ranges.data(), frame.ranges.size() * sizeof(WireRange)) &&
         ReadFully(socket, frame.payload.data(), frame.payload.size());
}

// What every frame must be like, whatever the script.
bool FakeReplica::Check(const Frame& frame, Serving& serving) {
  const FrameHeader& header = frame.header;
  uint64_t bytes = 0;
  for (const WireRange& range : frame.ranges) {
    bytes += range.length;
  }
  serving.consumed += FrameBytes(header);
  const bool data = frame.kind() == FrameKind::kDataImage;
  const bool good = header.header_crc == HeaderCrc(header, frame.ranges, {}) &&
                    header.payload_crc == (frame.payload.empty() ? 0 : Crc32c(0, frame.payload)) &&
                    header.session == Raw(serving.session) && header.sequence == serving.received + 1 &&
                    serving.consumed <= serving.granted && (!data || bytes == frame.payload.size());
  if (!good) {
    ++faults_;
  }
  return good;
}

void FakeReplica::Apply(const Frame& frame) {
  flags_ |= frame.header.flags;
  ++frames_[frame.kind()];
  if (frame.kind() != FrameKind::kDataImage) {
    return;
  }
  Stored& file = files_[frame.header.file];
  if (file.orders.empty() || file.orders.back() != frame.header.order) {
    file.orders.push_back(frame.header.order);
  }
  size_t at = 0;
  for (const WireRange& range : frame.ranges) {
    for (uint64_t i = range.offset; keep_ && i < range.offset + range.length; ++i, ++at) {
      if (file.bytes.size() <= i) {
        file.bytes.resize(i + 1);
        file.order.resize(i + 1);
      }
      if (file.order[i] <= frame.header.order) {
        file.bytes[i] = frame.payload[at];
        file.order[i] = frame.header.order;
      }
    }
  }
}

VerifiedBody FakeReplica::Verify(const Frame& frame) {
  VerifiedBody verified{};
  verified.sequence = frame.header.sequence;
  verified.file = frame.header.file;
  verified.range_count = frame.header.range_count;
  const Stored& file = files_[frame.header.file];
  for (size_t i = 0; i < frame.ranges.size(); ++i) {
    const size_t begin = std::min<size_t>(frame.ranges[i].offset, file.bytes.size());
    const size_t end = std::min<size_t>(begin + frame.ranges[i].length, file.bytes.size());
    verified.crc[i] = Crc32c(0, std::span(file.bytes).subspan(begin, end - begin));
    for (size_t at = begin; at < end; ++at) {
      verified.order = std::max(verified.order, file.order[at]);
    }
  }
  return verified;
}

ConfirmedBody FakeReplica::Confirm(const Frame& frame) {
  ConfirmedBody confirmed{};
  confirmed.sequence = frame.header.sequence;
  confirmed.file = frame.header.file;
  Stored& file = files_[frame.header.file];
  const WireRange range = frame.ranges.front();
  for (size_t i = 0; i < range.length / kConfirmBlock; ++i) {
    const uint64_t at = range.offset + i * kConfirmBlock;
    if (at + kConfirmBlock > file.bytes.size()) {
      break;
    }
    const XXH128_hash_t here = XXH3_128bits(file.bytes.data() + at, kConfirmBlock);
    BlockSum16 asked;
    std::memcpy(&asked, frame.payload.data() + i * sizeof asked, sizeof asked);
    if (asked == BlockSum16{here.low64, here.high64}) {
      confirmed.equal[i / 64] |= uint64_t{1} << (i % 64);
      for (uint64_t byte = at; byte < at + kConfirmBlock; ++byte) {
        file.order[byte] = std::max(file.order[byte], frame.header.order);
      }
    }
  }
  return confirmed;
}

void FakeReplica::SendReply(int socket, const Serving& serving, FrameKind kind,
                            std::span<const std::byte> body, size_t limit, bool slowly) {
  FrameHeader header{};
  header.magic = kFrameMagic;
  header.version = kFrameVersion;
  header.kind = static_cast<uint8_t>(kind);
  header.session = Raw(serving.session);
  header.payload_length = static_cast<uint32_t>(body.size());
  header.payload_crc = Crc32c(0, body);
  header.header_crc = HeaderCrc(header, {}, {});
  const auto head = std::as_bytes(std::span(&header, 1));
  std::vector<std::byte> frame(head.begin(), head.end());
  frame.insert(frame.end(), body.begin(), body.end());
  const size_t count = std::min(limit, frame.size());
  const size_t piece = slowly ? 1 : count;
  for (size_t at = 0; at < count; at += piece) {
    if (::send(socket, frame.data() + at, piece, MSG_NOSIGNAL) != static_cast<ssize_t>(piece)) {
      return;
    }
  }
}

void FakeReplica::Serve(UniqueFd socket, SessionId session, uint64_t number) {
  Serving serving;
  serving.session = session;
  {
    const Lock lock(mutex_);
    serving.window = serving.granted = window_;
    serving.received = serving.durable = received_[Raw(session)];
  }
  Frame frame;
  bool open = true;
  while (open && ReadFrame(socket.get(), frame)) {
    const Lock lock(mutex_);
    if (number != current_[Raw(session)]) {
      break;  // the session has another connection by now
    }
    if (!Check(frame, serving)) {
      break;
    }
    serving.received = received_[Raw(session)] = frame.header.sequence;
    const Answer answer = script_ ? script_(frame) : Answer{};
    if (answer.reaction == Reaction::kCut) {
      break;
    }
    size_t limit = SIZE_MAX;
    if (answer.reaction == Reaction::kRefuse) {
      const RefusalBody refusal{.sequence = frame.header.sequence,
                                .file = frame.header.file,
                                .order = frame.header.order,
                                .code = static_cast<uint32_t>(answer.code),
                                .error_number = 0};
      SendReply(socket.get(), serving, FrameKind::kRefusal, std::as_bytes(std::span(&refusal, 1)), SIZE_MAX,
                false);
    } else {
      Apply(frame);
      if (frame.kind() == FrameKind::kVerify && answer.reaction != Reaction::kNoAnswer) {
        const VerifiedBody verified = Verify(frame);
        SendReply(socket.get(), serving, FrameKind::kVerified, std::as_bytes(std::span(&verified, 1)),
                  SIZE_MAX, false);
      }
      if (frame.kind() == FrameKind::kConfirm && answer.reaction != Reaction::kNoAnswer) {
        const ConfirmedBody confirmed = Confirm(frame);
        SendReply(socket.get(), serving, FrameKind::kConfirmed, std::as_bytes(std::span(&confirmed, 1)),
                  SIZE_MAX, false);
      }
      serving.operation = frame.kind() == FrameKind::kNamespaceOp ? frame.header.order : serving.operation;
    }
    if (answer.reaction == Reaction::kGarbage) {
      const char garbage[256] = "this is no frame";
      ::send(socket.get(), garbage, sizeof garbage, MSG_NOSIGNAL);
    }
    if (answer.reaction == Reaction::kCutInReply) {
      limit = sizeof(FrameHeader) + 7;
      open = false;
    }
    const bool barrier = frame.kind() == FrameKind::kBarrier || (frame.header.flags & kFlagBarrier) != 0;
    if (barrier) {
      serving.durable = serving.received;
      serving.operation_durable = serving.operation;
    }
    const bool wanted =
        barrier || (frame.header.flags & kFlagAckWanted) != 0 || frame.kind() == FrameKind::kHeartbeat;
    const bool credit_due = serving.consumed + serving.window - serving.granted >= serving.window / 4;
    if (answer.reaction != Reaction::kNoAnswer && (wanted || credit_due)) {
      serving.granted = serving.consumed + serving.window;
      const AckBody ack{.received_sequence = serving.received,
                        .durable_sequence = serving.durable,
                        .operation_durable = serving.operation_durable,
                        .credit_limit = serving.granted};
      const auto body = std::as_bytes(std::span(&ack, 1));
      SendReply(socket.get(), serving, FrameKind::kAck, body, limit, answer.reaction == Reaction::kSlowReply);
    }
    changed_.notify_all();
  }
  const Lock lock(mutex_);
  std::erase(open_sockets_, socket.get());
  socket.Reset();
  changed_.notify_all();
}

void FakeReplica::SetScript(Script script) {
  const Lock lock(mutex_);
  script_ = std::move(script);
}

void FakeReplica::SetWindow(uint64_t bytes) {
  const Lock lock(mutex_);
  window_ = bytes;
}

void FakeReplica::SetConnectError(int error) {
  const Lock lock(mutex_);
  connect_error_ = error;
}

void FakeReplica::CutAfterBytes(uint64_t bytes) {
  const Lock lock(mutex_);
  cut_after_ = bytes;
}

void FakeReplica::CutNow() {
  const Lock lock(mutex_);
  for (const int socket : open_sockets_) {
    ::shutdown(socket, SHUT_RDWR);
  }
}

void FakeReplica::SetAbilities(uint64_t abilities) {
  const Lock lock(mutex_);
  abilities_ = abilities;
}

void FakeReplica::Pause(bool paused) {
  const Lock lock(mutex_);
  paused_ = paused;
  changed_.notify_all();
}

void FakeReplica::KeepImages(bool keep) {
  const Lock lock(mutex_);
  keep_ = keep;
}

std::vector<std::byte> FakeReplica::Image(FileId file) const {
  const Lock lock(mutex_);
  const auto found = files_.find(Raw(file));
  return found == files_.end() ? std::vector<std::byte>{} : found->second.bytes;
}

void FakeReplica::Spoil(FileId file, size_t at) {
  const Lock lock(mutex_);
  files_.at(Raw(file)).bytes.at(at) ^= std::byte{1};
}

uint64_t FakeReplica::frames(FrameKind kind) const {
  const Lock lock(mutex_);
  const auto found = frames_.find(kind);
  return found == frames_.end() ? 0 : found->second;
}

uint64_t FakeReplica::connects() const {
  const Lock lock(mutex_);
  return connects_;
}

uint64_t FakeReplica::faults() const {
  const Lock lock(mutex_);
  return faults_;
}

std::vector<uint64_t> FakeReplica::orders(FileId file) const {
  const Lock lock(mutex_);
  const auto found = files_.find(Raw(file));
  return found == files_.end() ? std::vector<uint64_t>{} : found->second.orders;
}

uint8_t FakeReplica::all_flags() const {
  const Lock lock(mutex_);
  return flags_;
}

bool FakeReplica::WaitFor(const std::function<bool(const FakeReplica&)>& condition) {
  std::unique_lock<std::recursive_mutex> lock(mutex_);
  return changed_.wait_for(lock, std::chrono::seconds(60), [&] { return condition(*this); });
}

}  // namespace pmirror
