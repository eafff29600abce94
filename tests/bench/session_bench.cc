// SPDX-License-Identifier: BSD-3-Clause
// What a sync costs over the bare network: Replicate() of some bytes to a replica thread that only answers,
// against a blocking TCP ping-pong of the same size, in one run, in turns, both ends pinned to the same CPU
// or to two. Prints medians, their ratio, and the syncing thread's CPU time for one operation (spinning is
// paid there).
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "replication/crc32c.h"
#include "replication/replicate.h"
#include "replication/spin_budget.h"

namespace pmirror {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 40;
constexpr int kOperationsInRound = 500;
constexpr size_t kAnswerBytes = 64;

void Require(bool condition, const char* what) {
  if (!condition) {
    std::perror(what);
    std::exit(1);
  }
}

void PinTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  Require(::sched_setaffinity(0, sizeof set, &set) == 0, "pin a thread");
}

std::pair<UniqueFd, UniqueFd> LoopbackPair() {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM, 0));
  UniqueFd near(::socket(AF_INET, SOCK_STREAM, 0));
  Require(::bind(listener.get(), generic, length) == 0 && ::listen(listener.get(), 1) == 0, "listen");
  Require(::getsockname(listener.get(), generic, &length) == 0, "getsockname");
  Require(::connect(near.get(), generic, length) == 0, "connect");
  UniqueFd far(::accept(listener.get(), nullptr, nullptr));
  for (const int fd : {near.get(), far.get()}) {
    const int one = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  }
  return {std::move(near), std::move(far)};
}

bool ReadFully(int fd, std::byte* to, size_t bytes) {
  return ::recv(fd, to, bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes);
}

// The other end of the ping-pong.
void ServeRaw(UniqueFd socket, size_t bytes, int cpu) {
  PinTo(cpu);
  std::vector<std::byte> message(bytes);
  while (ReadFully(socket.get(), message.data(), bytes)) {
    ::send(socket.get(), message.data(), kAnswerBytes, MSG_NOSIGNAL);
  }
}

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

class BenchConnector : public Connector {
 public:
  explicit BenchConnector(int cpu) : cpu_(cpu) {}
  ~BenchConnector() override { server_.join(); }
  Result<Connection> Connect(SessionId, Sequence, Deadline) override {
    auto [near, far] = LoopbackPair();
    server_ =
        std::thread([fd = far.Release(), this] { ServeFrames(UniqueFd(fd), SessionId{1}, kWindow, cpu_); });
    return Connection{.socket = std::move(near), .session = SessionId{1}, .resumed = {0, 0, 0, kWindow}};
  }

 private:
  static constexpr uint64_t kWindow = 4 << 20;
  const int cpu_;
  std::thread server_;
};

class QuietObserver : public SyncObserver {
 public:
  void Suspended(FileId) override {}
  void Resumed(FileId) override {}
  void Failed(FileId, int) override {}
  void Recaptured() override {}
};

class MemorySource : public ByteSource {
 public:
  explicit MemorySource(size_t bytes) : memory_(bytes) {}
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
    std::memcpy(out.data(), memory_.data() + extent.offset, extent.length);
    return static_cast<size_t>(extent.length);
  }
  Result<size_t> CopyWithCrc(Extent extent, std::span<std::byte> out, uint32_t& crc) override {
    crc = CopyAndCrc32c(crc, out.data(), std::span(memory_).subspan(extent.offset, extent.length));
    return static_cast<size_t>(extent.length);
  }

 private:
  std::vector<std::byte> memory_;
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

double CpuMicroseconds() {
  rusage usage{};
  ::getrusage(RUSAGE_THREAD, &usage);
  const auto microseconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_usec);
  };
  return microseconds(usage.ru_utime) + microseconds(usage.ru_stime);
}

struct Samples {
  std::vector<double> microseconds;
  double cpu = 0;

  template <typename Operation>
  void Round(int operations, Operation operation) {
    const double cpu_before = CpuMicroseconds();
    for (int i = 0; i < operations; ++i) {
      const auto begin = Clock::now();
      operation();
      microseconds.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    }
    cpu += CpuMicroseconds() - cpu_before;
  }
  double CpuOfOne() const { return cpu / static_cast<double>(microseconds.size()); }
};

void Compare(size_t bytes, bool same_cpu) {
  PinTo(0);
  const int far_cpu = same_cpu ? 0 : 1;
  auto [raw_near, raw_far] = LoopbackPair();
  const int raw_fd = raw_near.get();
  std::thread raw_server(
      [fd = raw_far.Release(), bytes, far_cpu] { ServeRaw(UniqueFd(fd), bytes, far_cpu); });

  // The session asks how many CPUs there are when it is made: as a program would, before this thread is
  // pinned.
  cpu_set_t all;
  CPU_ZERO(&all);
  CPU_SET(0, &all);
  CPU_SET(far_cpu, &all);
  ::sched_setaffinity(0, sizeof all, &all);
  BenchConnector connector(far_cpu);
  const auto session = std::move(DataSession::Create(connector).value());
  PinTo(0);
  DataSession* const sessions[] = {session.get()};
  const auto page = std::make_unique<VolumePage>();
  page->state = static_cast<uint32_t>(VolumeState::kServing);
  page->set = SetWord::Make(1, 0, SetVersion{1}).raw;
  page->deadline_ns = 60'000'000'000;
  OrderPage order{};
  order.next = 1;
  const auto pool = std::move(StagingPool::Create(256 * 1024).value());
  QuietObserver observer;
  Replication replication(*page, sessions, *pool, observer);
  MemorySource source(bytes);
  const Extent extent{0, bytes};
  const CaptureTarget target{.file = FileId{2}, .order = &order, .slot = &page->slots[0]};
  const auto replicate = [&] {
    Require(replication.Replicate(target, {&extent, 1}, source, WaitLevel::kDurable, nullptr).ok(),
            "replicate");
  };
  std::vector<std::byte> message(bytes);
  const auto ping = [&] {
    Require(::send(raw_fd, message.data(), bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes), "send");
    Require(ReadFully(raw_fd, message.data(), kAnswerBytes), "receive");
  };

  const int operations = static_cast<int>(std::max<size_t>(10, kOperationsInRound / (1 + bytes / 65536)));
  Samples warm;
  warm.Round(operations, ping);
  warm.Round(operations, replicate);
  Samples raw;
  Samples ours;
  for (int round = 0; round < kRounds; ++round) {
    raw.Round(operations, ping);
    ours.Round(operations, replicate);
  }
  const double raw_median = Median(raw.microseconds);
  const double our_median = Median(ours.microseconds);
  const SessionCounters counters = session->counters();
  std::printf(
      "%9zu B  %-13s raw %8.1f us  replicate %8.1f us  ratio %5.2f   CPU raw %6.1f us  replicate %6.1f us  "
      "(spins: %llu hit, %llu missed)\n",
      bytes, same_cpu ? "one CPU" : "two CPUs", raw_median, our_median, our_median / raw_median,
      raw.CpuOfOne(), ours.CpuOfOne(), static_cast<unsigned long long>(counters.spins_hit),
      static_cast<unsigned long long>(counters.spins_missed));
  session->Disconnect();
  raw_near.Reset();
  raw_server.join();
}

}  // namespace
}  // namespace pmirror

int main() {
  const bool two_cpus = pmirror::UsableCpus() > 1;
  for (const size_t bytes : {size_t{64}, size_t{4096}, size_t{64} << 10, size_t{1} << 20, size_t{16} << 20}) {
    for (const bool same_cpu : {true, false}) {
      if (same_cpu || two_cpus) {
        pmirror::Compare(bytes, same_cpu);
      }
    }
  }
  return 0;
}
