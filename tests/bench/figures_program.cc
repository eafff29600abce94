// SPDX-License-Identifier: BSD-3-Clause
// The program whose syncs figures.py measures. It runs on a file of a mounted volume, under the preload library or without it, and beside
// each measured operation it measures the bare one: a blocking TCP ping-pong of the same message sizes with an echo process on the other node.
// Operation and base take turns in short rounds, so that both meet the same machine. Prints "NAME MEDIAN_NS BASE_MEDIAN_NS CPU_NS" lines.
//
//
// A round trip on one CPU is three times as fast as one between two, and the scheduler changes between them as it likes: the program stays on
// CPU 0, the echo and (given its pid) the replica's daemon on CPU 1. The daemon is bound only after the warm-up, because a daemon that finds
// itself with one CPU rightly does not spin.
//
//   figures_program echo HOST PORT                           answers requests until it is killed
//   figures_program persist|page|plain FILE HOST PORT REPLICA_PID
//   figures_program memory FILE BACKING_FILE
//   figures_program open|resident FILE
#include <arpa/inet.h>
#include <fcntl.h>
#include <libpmem.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "replication/frame.h"
#include "replication/write_tracker.h"

namespace {

using Clock = std::chrono::steady_clock;
using pmirror::kPageSize;

constexpr size_t kGiB = size_t{1} << 30;
constexpr uint32_t kAckBytes = sizeof(pmirror::FrameHeader) + sizeof(pmirror::AckBody);
constexpr uint32_t FrameBytes(size_t payload) {
  return static_cast<uint32_t>(sizeof(pmirror::FrameHeader) + sizeof(pmirror::WireRange) + payload);
}

void Require(bool condition, const char* what) {
  if (!condition) {
    std::perror(what);
    std::exit(1);
  }
}

// What an echo is asked for: so many bytes follow this request, so many are wanted back.
struct EchoRequest {
  uint32_t follow;
  uint32_t answer;
};

void ReadAll(int socket, void* to, size_t length) {
  for (size_t done = 0; done < length;) {
    const ssize_t got = ::recv(socket, static_cast<char*>(to) + done, length - done, 0);
    Require(got > 0, "recv");
    done += static_cast<size_t>(got);
  }
}

void SendAll(int socket, const void* from, size_t length) {
  for (size_t done = 0; done < length;) {
    const ssize_t sent = ::send(socket, static_cast<const char*>(from) + done, length - done, MSG_NOSIGNAL);
    Require(sent > 0, "send");
    done += static_cast<size_t>(sent);
  }
}

sockaddr_in AddressOf(const char* host, const char* port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::atoi(port)));
  Require(::inet_pton(AF_INET, host, &address.sin_addr) == 1, "address");
  return address;
}

void PinTo(pid_t thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  ::sched_setaffinity(thread, sizeof set, &set);  // a thread that has ended meanwhile needs no place
}

void PinAll(const char* pid, int cpu) {
  for (const auto& task : std::filesystem::directory_iterator(std::string("/proc/") + pid + "/task")) {
    PinTo(std::atoi(task.path().filename().c_str()), cpu);
  }
}

int Echo(const char* host, const char* port) {
  PinTo(0, 1);
  const sockaddr_in address = AddressOf(host, port);
  const int one = 1;
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  Require(::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0, "bind");
  Require(::listen(listener, 1) == 0, "listen");
  std::puts("listening");
  std::fflush(stdout);
  std::vector<char> room(2 << 20);
  for (;;) {
    const int peer = ::accept(listener, nullptr, nullptr);
    ::setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    EchoRequest request;
    while (::recv(peer, &request, sizeof request, MSG_WAITALL) == sizeof request) {
      for (size_t left = request.follow; left > 0;) {
        const ssize_t got = ::recv(peer, room.data(), std::min(left, room.size()), 0);
        if (got <= 0) {
          break;
        }
        left -= static_cast<size_t>(got);
      }
      SendAll(peer, room.data(), request.answer);
    }
    ::close(peer);
  }
}

// The bare round trip: `bytes` one way, an acknowledgement's worth back.
class Wire {
 public:
  Wire(const char* host, const char* port) {
    const sockaddr_in address = AddressOf(host, port);
    const int one = 1;
    socket_ = ::socket(AF_INET, SOCK_STREAM, 0);
    Require(::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0, "connect");
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  }
  void Exchange(uint32_t bytes) {
    if (out_.size() < bytes) {
      out_.resize(bytes);
    }
    const EchoRequest request{bytes - static_cast<uint32_t>(sizeof(EchoRequest)), kAckBytes};
    std::memcpy(out_.data(), &request, sizeof request);
    SendAll(socket_, out_.data(), bytes);
    ReadAll(socket_, in_, kAckBytes);
  }

 private:
  int socket_ = -1;
  std::vector<char> out_;
  char in_[kAckBytes];
};

using Operation = std::function<void()>;

int64_t Time(const Operation& operation) {
  const auto begin = Clock::now();
  operation();
  return (Clock::now() - begin).count();
}

int64_t CpuNow() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

int64_t Median(std::vector<int64_t>& values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

const char* g_replica_pid = nullptr;

// `prepare` runs before each operation, outside the measured time.
void Measure(const char* name, int rounds, int per_round, const Operation& prepare,
             const Operation& operation, const Operation& base) {
  std::vector<int64_t> operations;
  std::vector<int64_t> bases;
  std::vector<int64_t> cpu;
  for (int i = 0; i < per_round; ++i) {  // the first ones find out what there is to find out
    prepare();
    operation();
    base();
  }
  if (g_replica_pid != nullptr) {
    PinTo(0, 0);
    PinAll(g_replica_pid, 1);
  }
  for (int round = 0; round < rounds; ++round) {
    for (int i = 0; i < per_round; ++i) {
      bases.push_back(Time(base));
    }
    for (int i = 0; i < per_round; ++i) {
      prepare();
      const int64_t before = CpuNow();
      operations.push_back(Time(operation));
      cpu.push_back(CpuNow() - before);
    }
  }
  std::printf("%s %lld %lld %lld\n", name, static_cast<long long>(Median(operations)),
              static_cast<long long>(Median(bases)), static_cast<long long>(Median(cpu)));
  std::fflush(stdout);
}

char* MapShared(const std::string& path, size_t bytes) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT, 0644);
  Require(fd >= 0 && ::ftruncate(fd, static_cast<off_t>(bytes)) == 0, "make the file");
  void* map = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  Require(map != MAP_FAILED, "mmap");
  ::close(fd);
  return static_cast<char*>(map);
}

// A mapping of the same size and kind, of our own, whose scan costs what the library's has to.
class RawScan {
 public:
  explicit RawScan(size_t bytes) : bytes_(bytes) {
    const int memory = ::memfd_create("raw", MFD_CLOEXEC);
    Require(::ftruncate(memory, static_cast<off_t>(bytes)) == 0, "ftruncate");
    map_ = static_cast<char*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0));
    tracker_ = std::move(pmirror::WriteTracker::Open()).value();
    pagemap_ = ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    Require(tracker_.Register(Address(), bytes, pmirror::Tracking::kWritten).ok(), "track");
    std::memset(map_, 1, bytes);
    Scan();
  }
  void Touch(size_t page) { map_[page * kPageSize]++; }
  void Scan() {
    Require(pmirror::ProtectAll(pagemap_, pmirror::Tracking::kWritten, Address(), Address() + bytes_).ok(),
            "scan");
  }

 private:
  uintptr_t Address() const { return reinterpret_cast<uintptr_t>(map_); }
  const size_t bytes_;
  char* map_ = nullptr;
  pmirror::WriteTracker tracker_;
  int pagemap_ = -1;
};

void Persist(const std::string& file, Wire& wire) {
  size_t length = 0;
  char* map =
      static_cast<char*>(pmem_map_file(file.c_str(), 1 << 20, PMEM_FILE_CREATE, 0644, &length, nullptr));
  Require(map != nullptr, "pmem_map_file");
  size_t at = 0;
  Measure(
      "persist_64", 40, 200,
      [&] {
        at = (at + 4096 + 64) % (length - 64);
        map[at]++;
      },
      [&] { pmem_persist(map + at / 64 * 64, 64); }, [&] { wire.Exchange(FrameBytes(64)); });
}

void Page(const std::string& file, Wire& wire) {
  char* map = MapShared(file, kGiB);
  std::memset(map, 1, kGiB);
  Require(::msync(map, kGiB, MS_SYNC) == 0, "msync");
  size_t page = 0;
  const Operation store = [&] {
    page = (page + 7919) % (kGiB / kPageSize);
    map[page * kPageSize]++;
  };
  Measure(
      "msync_page", 40, 100, store,
      [&] { Require(::msync(map + page * kPageSize, kPageSize, MS_SYNC) == 0, "msync"); },
      [&] { wire.Exchange(FrameBytes(kPageSize)); });

  RawScan raw(kGiB);
  size_t touched = 0;
  std::vector<int64_t> scans;
  for (int i = 0; i < 60; ++i) {
    raw.Touch(touched = (touched + 7919) % (kGiB / kPageSize));
    scans.push_back(Time([&] { raw.Scan(); }));
  }
  std::printf("scan_one %lld 0 0\n", static_cast<long long>(Median(scans)));
  Measure(
      "msync_whole_one_page", 12, 10, store, [&] { Require(::msync(map, kGiB, MS_SYNC) == 0, "msync"); },
      [&] { wire.Exchange(FrameBytes(kPageSize)); });

  scans.clear();
  const Operation thousand = [&] {
    for (int i = 0; i < 1000; ++i) {
      store();
    }
  };
  for (int i = 0; i < 20; ++i) {
    for (int k = 0; k < 1000; ++k) {
      raw.Touch(touched = (touched + 7919) % (kGiB / kPageSize));
    }
    scans.push_back(Time([&] { raw.Scan(); }));
  }
  std::printf("scan_thousand %lld 0 0\n", static_cast<long long>(Median(scans)));
  Measure(
      "msync_whole_thousand", 10, 4, thousand, [&] { Require(::msync(map, kGiB, MS_SYNC) == 0, "msync"); },
      [&] { wire.Exchange(FrameBytes(1000 * (kPageSize + sizeof(pmirror::WireRange)))); });
  Require(::munmap(map, kGiB) == 0, "munmap");
}

// Loads and stores between syncs, after the first touch: the base is an ordinary mapping of the same pages, of the backing file itself (pages
// at other places were seen to differ by a third).
void Memory(const std::string& file, const std::string& plain) {
  constexpr size_t kBytes = 64 << 20;
  char* maps[2] = {MapShared(file, kBytes), MapShared(plain, kBytes)};
  for (char* map : maps) {
    std::memset(map, 1, kBytes);
  }
  const auto work = [](char* map) {
    uint64_t state = 88172645463325252;
    uint64_t sum = 0;
    for (int i = 0; i < 200'000; ++i) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      auto* word = reinterpret_cast<volatile uint64_t*>(map + (state % (kBytes / 8)) * 8);
      sum += *word;
      *word = sum;
    }
  };
  Measure(
      "load_store", 400, 1, [] {}, [&] { work(maps[0]); }, [&] { work(maps[1]); });
}

// 4 KiB through a mapping, and fdatasync.
void Plain(const std::string& file, Wire& wire) {
  const int fd = ::open(file.c_str(), O_RDWR | O_CREAT, 0644);
  constexpr size_t kBytes = 16 << 20;
  Require(fd >= 0 && ::ftruncate(fd, kBytes) == 0, "make the file");
  char* map = static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  Require(map != MAP_FAILED, "mmap");
  size_t page = 0;
  Measure(
      "plain_store_fdatasync", 20, 50,
      [&] {
        page = (page + 37) % (kBytes / kPageSize);
        std::memset(map + page * kPageSize, static_cast<int>(page), kPageSize);
      },
      [&] { Require(::fdatasync(fd) == 0, "fdatasync"); }, [&] { wire.Exchange(FrameBytes(64)); });
}

void Open(const std::string& file) {
  for (int i = 0; i < 20; ++i) {
    const int made = ::open((file + std::to_string(i)).c_str(), O_RDWR | O_CREAT, 0644);
    Require(made >= 0 && ::ftruncate(made, 1 << 20) == 0, "make a file");
    ::close(made);
  }
  std::vector<int64_t> later;
  int64_t first = 0;
  for (int i = 0; i < 20; ++i) {
    const int64_t took = Time([&] {
      const int fd = ::open((file + std::to_string(i)).c_str(), O_RDWR);
      void* map = ::mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      Require(map != MAP_FAILED, "mmap");
    });
    if (i == 0) {
      first = took;
    } else {
      later.push_back(took);
    }
  }
  std::printf("open_first %lld 0 0\nopen_later %lld 0 0\n", static_cast<long long>(first),
              static_cast<long long>(Median(later)));
}

// Memory that this process has resident beside the data file's own pages: run with and without the library, the difference is its own.
void Resident(const std::string& file) {
  constexpr size_t kBytes = 256 << 20;
  char* map = MapShared(file, kBytes);
  std::memset(map, 1, kBytes);
  Require(::msync(map, kBytes, MS_SYNC) == 0, "msync");
  std::FILE* smaps = std::fopen("/proc/self/smaps", "r");
  Require(smaps != nullptr, "smaps");
  char line[512];
  bool data = false;
  long long kib = 0;
  while (std::fgets(line, sizeof line, smaps) != nullptr) {
    unsigned long long from = 0;
    unsigned long long to = 0;
    if (std::sscanf(line, "%llx-%llx ", &from, &to) == 2) {
      data = from >= reinterpret_cast<uintptr_t>(map) && to <= reinterpret_cast<uintptr_t>(map) + kBytes;
    }
    long long value = 0;
    if (!data && std::sscanf(line, "Rss: %lld kB", &value) == 1) {
      kib += value;
    }
  }
  std::fclose(smaps);
  std::printf("resident_kib %lld 0 0\n", kib);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "echo") == 0) {
    return Echo(argv[2], argv[3]);
  }
  if (argc < 3) {
    std::fputs("usage: figures_program echo HOST PORT | FIGURE FILE [HOST PORT | PLAIN_FILE]\n", stderr);
    return 2;
  }
  const std::string figure = argv[1];
  const std::string file = argv[2];
  if (figure == "open") {
    Open(file);
  } else if (figure == "resident") {
    Resident(file);
  } else if (figure == "memory" && argc == 4) {
    Memory(file, argv[3]);
  } else if (argc == 5 || argc == 6) {
    g_replica_pid = argc == 6 ? argv[5] : nullptr;
    Wire wire(argv[3], argv[4]);
    if (figure == "persist") {
      Persist(file, wire);
    } else if (figure == "page") {
      Page(file, wire);
    } else if (figure == "plain") {
      Plain(file, wire);
    } else {
      return 2;
    }
  } else {
    return 2;
  }
  return 0;
}
