// SPDX-License-Identifier: BSD-3-Clause
// What a sync costs over the bare network when the replica does nothing but answer: the share of the sending
// side and of the protocol. replica_bench has the real replica.
#include <sys/socket.h>

#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "replication/crc32c.h"
#include "tests/bench/sync_bench.h"

namespace pmirror::bench {
namespace {

// A replica that checks the checksums, throws the bytes away and acknowledges what is asked for. Reads as a
// server does: what is there, into a large buffer.
void ServeFrames(UniqueFd socket, SessionId session, uint64_t window, int cpu) {
  PinTo(cpu);
  std::vector<std::byte> buffer(4 * kMaxFrame);
  size_t begin = 0;
  size_t end = 0;
  uint64_t consumed = 0;
  while (true) {
    const ssize_t count = ::recv(socket.get(), buffer.data() + end, buffer.size() - end, 0);
    if (count <= 0) {
      return;
    }
    end += static_cast<size_t>(count);
    while (end - begin >= sizeof(FrameHeader)) {
      FrameHeader header;
      std::memcpy(&header, buffer.data() + begin, sizeof header);
      const size_t whole = FrameBytes(header);
      if (end - begin < whole) {
        break;
      }
      const auto frame = std::span(buffer).subspan(begin, whole);
      const auto* const ranges = reinterpret_cast<const WireRange*>(frame.data() + sizeof header);
      Require(HeaderCrc(header, {ranges, header.range_count}, {}) == header.header_crc &&
                  Crc32c(0, frame.last(header.payload_length)) == header.payload_crc,
              "checksums");
      begin += whole;
      consumed += whole;
      if ((header.flags & kFlagAckWanted) != 0 || consumed % window >= window / 2) {
        struct {
          FrameHeader header;
          AckBody body;
        } ack{};
        ack.body = {header.sequence, header.sequence, 0, consumed + window};
        ack.header.magic = kFrameMagic;
        ack.header.version = kFrameVersion;
        ack.header.kind = static_cast<uint8_t>(FrameKind::kAck);
        ack.header.session = Raw(session);
        ack.header.payload_length = sizeof ack.body;
        ack.header.payload_crc = Crc32c(0, std::as_bytes(std::span(&ack.body, 1)));
        ack.header.header_crc = HeaderCrc(ack.header, {}, {});
        ::send(socket.get(), &ack, sizeof ack, MSG_NOSIGNAL);
      }
    }
    std::memmove(buffer.data(), buffer.data() + begin, end - begin);
    end -= begin;
    begin = 0;
  }
}

class EchoReplica : public Connector {
 public:
  explicit EchoReplica(int cpu) : cpu_(cpu) {}
  ~EchoReplica() override { server_.join(); }
  Result<Connection> Connect(SessionId, Sequence, Deadline) override {
    auto [near, far] = LoopbackPair();
    server_ =
        std::thread([fd = far.Release(), this] { ServeFrames(UniqueFd(fd), SessionId{1}, kWindow, cpu_); });
    return Connection{.socket = std::move(near), .session = SessionId{1}, .resumed = {0, 0, 0, kWindow}};
  }

  Subject subject() {
    return {.connector = this, .file = FileId{2}, .prepare = [](DataSession&) {}};
  }

 private:
  static constexpr uint64_t kWindow = 4 << 20;
  const int cpu_;
  std::thread server_;
};

}  // namespace
}  // namespace pmirror::bench

int main() {
  pmirror::bench::CompareAll(
      "echo", [](int far_cpu) { return std::make_unique<pmirror::bench::EchoReplica>(far_cpu); });
  return 0;
}
