// SPDX-License-Identifier: BSD-3-Clause
// What the replica adds to a round trip: a frame of so many bytes with a barrier, to its durable
// acknowledgement, against a bare echo of the same message sizes over the same loopback, in one run and with
// the same placement (client on one CPU, server on another).
//
// replica_latency [rounds]       The backing directory is a tmpfs, the domain volatile.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "replication/crc32c.h"
#include "replication/deadline.h"
#include "replication/unique_fd.h"
#include "server/data_listener.h"
#include "server/replica_volume.h"

namespace {

using namespace pmirror;          // NOLINT(google-build-using-namespace): a program
using namespace pmirror::server;  // NOLINT(google-build-using-namespace)

constexpr size_t kAckBytes = sizeof(FrameHeader) + sizeof(AckBody);

// The client stays on CPU 0 and spins there, so that servers, which may use both, run on CPU 1. A server that
// is bound to one CPU would rightly refrain from spinning.
void UseCpus(int last) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu = 0; cpu <= last; ++cpu) {
    CPU_SET(cpu, &set);
  }
  ::sched_setaffinity(0, sizeof set, &set);
}

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "replica_latency: %s\n", what.c_str());
  std::exit(1);
}

void SendAll(int socket, const void* from, size_t length) {
  if (::send(socket, from, length, MSG_NOSIGNAL) != static_cast<ssize_t>(length)) {
    Fail("send failed");
  }
}

// Spins: both measurements get the same client.
void ReceiveAll(int socket, void* to, size_t length) {
  for (size_t at = 0; at < length;) {
    const ssize_t got = ::recv(socket, static_cast<char*>(to) + at, length - at, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
      Fail("the connection ended");
    }
    at += got > 0 ? static_cast<size_t>(got) : 0;
  }
}

UniqueFd Dial(uint16_t port) {
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int one = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    Fail("connect failed");
  }
  return socket;
}

// Medians in microseconds.
template <typename Round>
double Median(int rounds, Round round) {
  std::vector<double> times;
  for (int i = 0; i < rounds + rounds / 10; ++i) {
    const Deadline::Duration begin = Deadline::Now();
    round(static_cast<uint64_t>(i));
    times.push_back(std::chrono::duration<double, std::micro>(Deadline::Now() - begin).count());
  }
  times.erase(times.begin(), times.begin() + rounds / 10);  // warm-up
  std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
  return times[static_cast<size_t>(rounds / 2)];
}

// A server that does nothing but count bytes: takes `in` bytes, answers `kAckBytes`.
double EchoRoundTrip(size_t in, int rounds, bool spin) {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener.get(), 1) != 0 ||
      ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    Fail("listen failed");
  }
  std::thread server([&] {
    UseCpus(1);
    const UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const int one = 1;
    ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    std::vector<char> buffer(in);
    for (;;) {
      for (size_t at = 0; at < in;) {
        const ssize_t got = ::recv(socket.get(), buffer.data() + at, in - at, spin ? MSG_DONTWAIT : 0);
        if (got == 0 || (got < 0 && errno != EAGAIN)) {
          return;
        }
        at += got > 0 ? static_cast<size_t>(got) : 0;
      }
      SendAll(socket.get(), buffer.data(), kAckBytes);
    }
  });
  double median = 0;
  {
    const UniqueFd client = Dial(ntohs(address.sin_port));
    std::vector<char> message(std::max(in, kAckBytes));
    median = Median(rounds, [&](uint64_t) {
      SendAll(client.get(), message.data(), in);
      ReceiveAll(client.get(), message.data(), kAckBytes);
    });
  }
  server.join();
  return median;
}

class Replica {
 public:
  explicit Replica(const std::string& directory) {
    ReplicaVolume::Options options;
    options.name = "bench";
    options.backing = directory + "/backing";
    options.state_directory = directory;
    options.domain = Domain::kVolatile;
    std::filesystem::create_directory(options.backing);
    auto volume = ReplicaVolume::Open(options);
    if (!volume.ok()) {
      Fail(volume.status().ToString());
    }
    volume_ = *std::move(volume);
    UseCpus(1);  // its threads inherit it
    auto listener = DataListener::Start({.addresses = {"127.0.0.1:0"}}, {volume_.get()});
    UseCpus(0);
    if (!listener.ok()) {
      Fail(listener.status().ToString());
    }
    listener_ = *std::move(listener);
    const std::string& address = listener_->addresses()[0];
    socket_ = Dial(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    Greet();
    NamespaceOp op;
    op.kind = OpKind::kCreate;
    op.target = FileId{10};
    op.parent = FileId::kRoot;
    op.mode = 0100644;
    op.name = "file";
    std::vector<std::byte> payload;
    Encode(op, payload);
    FrameHeader header = Header(FrameKind::kNamespaceOp, kFlagAckWanted);
    header.order = 1;
    Exchange(header, {}, payload);
  }

  double RoundTrip(size_t bytes, int rounds) {
    const std::vector<std::byte> payload(bytes);
    return Median(rounds, [&](uint64_t i) {
      FrameHeader header = Header(FrameKind::kDataImage, kFlagBarrier);
      header.file = 10;
      header.order = ++order_;
      const WireRange range{i % 256 * bytes, bytes};
      Exchange(header, {&range, 1}, payload);
    });
  }

 private:
  void Greet() {
    const auto permit = volume_->PrepareSession({.node = "n1",
                                                 .epoch = Epoch{1},
                                                 .kind = SessionKind::kDaemon,
                                                 .session = {},
                                                 .process = "bench",
                                                 .generation = 1,
                                                 .mount_number = 1});
    if (!permit.ok()) {
      Fail(permit.status().ToString());
    }
    session_ = permit->session;
    HelloBody hello{};
    std::copy(permit->ticket.begin(), permit->ticket.end(), hello.ticket);
    hello.next_sequence = 1;
    hello.kind = static_cast<uint32_t>(SessionKind::kDaemon);
    FrameHeader header = Header(FrameKind::kHello, 0);
    header.sequence = 0;
    sequence_ = 0;
    Exchange(header, {}, std::as_bytes(std::span(&hello, 1)));
  }

  FrameHeader Header(FrameKind kind, uint8_t flags) {
    FrameHeader header{};
    header.magic = kFrameMagic;
    header.version = kFrameVersion;
    header.kind = static_cast<uint8_t>(kind);
    header.flags = flags;
    header.epoch = 1;
    header.session = Raw(session_);
    header.sequence = ++sequence_;
    return header;
  }

  // Builds and sends one frame and takes the one reply.
  void Exchange(FrameHeader header, std::span<const WireRange> ranges, std::span<const std::byte> payload) {
    header.range_count = static_cast<uint32_t>(ranges.size());
    header.payload_length = static_cast<uint32_t>(payload.size());
    out_.resize(FrameBytes(header));
    std::byte* at = out_.data() + sizeof header;
    at = std::copy_n(std::as_bytes(ranges).data(), ranges.size_bytes(), at);
    header.payload_crc = CopyAndCrc32c(0, at, payload);
    header.header_crc = HeaderCrc(header, ranges, {});
    std::copy_n(std::as_bytes(std::span(&header, 1)).data(), sizeof header, out_.data());
    SendAll(socket_.get(), out_.data(), out_.size());
    std::byte reply[kAckBytes];
    ReceiveAll(socket_.get(), reply, sizeof reply);
    if (reply[6] == static_cast<std::byte>(FrameKind::kRefusal)) {
      Fail("the replica refused a frame");
    }
  }

  std::unique_ptr<ReplicaVolume> volume_;
  std::unique_ptr<DataListener> listener_;
  UniqueFd socket_;
  SessionId session_{};
  Sequence sequence_ = 0;
  uint64_t order_ = 0;
  std::vector<std::byte> out_;
};

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20000;
  spdlog::set_level(spdlog::level::warn);
  std::string directory = "/dev/shm/pmirror-bench-XXXXXX";
  if (rounds < 10 || ::mkdtemp(directory.data()) == nullptr) {
    Fail("usage: replica_latency [rounds, at least 10]");
  }
  UseCpus(0);
  {
    Replica replica(directory);
    std::printf("%10s %16s %16s %16s %12s\n", "bytes", "echo, sleeping", "echo, spinning", "replica", "adds");
    for (const size_t bytes : {64u, 512u, 4096u, 65536u}) {
      const size_t frame = sizeof(FrameHeader) + sizeof(WireRange) + bytes;
      const double sleeping = EchoRoundTrip(frame, rounds, false);
      const double spinning = EchoRoundTrip(frame, rounds, true);
      const double ours = replica.RoundTrip(bytes, rounds);
      std::printf("%10zu %13.2f us %13.2f us %13.2f us %9.2f us\n", bytes, sleeping, spinning, ours,
                  ours - spinning);
    }
  }
  std::filesystem::remove_all(directory);
  return 0;
}
