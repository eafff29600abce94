// SPDX-License-Identifier: BSD-3-Clause
// The measuring of syncs against a blocking TCP ping-pong of the same size: in one run, in turns, both ends
// pinned to the same CPU or to two. Prints medians, their ratio, and the syncing thread's CPU time for one
// operation (spinning is paid there).
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "replication/crc32c.h"
#include "replication/replicate.h"
#include "replication/spin_budget.h"

namespace pmirror::bench {

using Clock = std::chrono::steady_clock;

inline constexpr int kRounds = 40;
inline constexpr int kOperationsInRound = 500;
inline constexpr size_t kAnswerBytes = 64;

inline void Require(bool condition, const char* what) {
  if (!condition) {
    std::perror(what);
    std::exit(1);
  }
}

inline void PinTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  Require(::sched_setaffinity(0, sizeof set, &set) == 0, "pin a thread");
}

inline std::pair<UniqueFd, UniqueFd> LoopbackPair() {
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

inline bool ReadFully(int fd, std::byte* to, size_t bytes) {
  return ::recv(fd, to, bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes);
}

// The other end of the ping-pong.
inline void ServeRaw(UniqueFd socket, size_t bytes, int cpu) {
  PinTo(cpu);
  std::vector<std::byte> message(bytes);
  while (ReadFully(socket.get(), message.data(), bytes)) {
    ::send(socket.get(), message.data(), kAnswerBytes, MSG_NOSIGNAL);
  }
}

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

inline double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

inline double CpuMicroseconds() {
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

// What is measured: a session's other end, on the given CPU, that holds `file` and lets the session write it.
struct Subject {
  Connector* connector = nullptr;
  FileId file{};
  std::function<void(DataSession&)> prepare;  // once it is connected
};

inline void Compare(const char* name, size_t bytes, bool same_cpu, const Subject& subject) {
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
  const auto session = std::move(DataSession::Create(*subject.connector).value());
  Require(session->EnsureConnected(Deadline::After(std::chrono::seconds(10))).ok(), "connect");
  subject.prepare(*session);
  PinTo(0);
  DataSession* const sessions[] = {session.get()};
  const auto page = std::make_unique<VolumePage>();
  page->state = static_cast<uint32_t>(VolumeState::kServing);
  page->set = SetWord::Make(1, 0, SetVersion{1}).raw;
  page->epoch = 1;
  page->deadline_ns = 60'000'000'000;
  OrderPage order{};
  order.next = 1;
  const auto pool = std::move(StagingPool::Create(256 * 1024).value());
  QuietObserver observer;
  Replication replication(*page, sessions, *pool, observer);
  MemorySource source(bytes);
  const Extent extent{0, bytes};
  const CaptureTarget target{.file = subject.file, .order = &order, .slot = &page->slots[0]};
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
      "%-8s %9zu B  %-8s raw %8.1f us  replicate %8.1f us  ratio %5.2f   CPU raw %6.1f us  replicate %6.1f "
      "us  "
      "(spins: %llu hit, %llu missed)\n",
      name, bytes, same_cpu ? "one CPU" : "two CPUs", raw_median, our_median, our_median / raw_median,
      raw.CpuOfOne(), ours.CpuOfOne(), static_cast<unsigned long long>(counters.spins_hit),
      static_cast<unsigned long long>(counters.spins_missed));
  session->Disconnect();
  raw_near.Reset();
  raw_server.join();
}

// Sizes and placements, each with a subject of its own: `make(far_cpu)` gives something with subject().
template <typename Make>
void CompareAll(const char* name, Make make) {
  const bool two_cpus = UsableCpus() > 1;
  cpu_set_t before;
  Require(::sched_getaffinity(0, sizeof before, &before) == 0, "ask for the CPUs");
  for (const size_t bytes : {size_t{64}, size_t{4096}, size_t{64} << 10, size_t{1} << 20, size_t{4} << 20}) {
    for (const bool same_cpu : {true, false}) {
      if (!same_cpu && !two_cpus) {
        continue;
      }
      const auto owner = make(same_cpu ? 0 : 1);
      Compare(name, bytes, same_cpu, owner->subject());
      ::sched_setaffinity(0, sizeof before, &before);
    }
  }
}

}  // namespace pmirror::bench
