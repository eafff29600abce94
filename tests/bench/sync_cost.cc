// SPDX-License-Identifier: BSD-3-Clause
// The cost of one msync of a page, over and over: prints a line "median_ns count" for each interval, until it has printed as many as asked.
//   sync_cost FILE INTERVAL_MS LINES
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPages = 64;

int64_t Now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: sync_cost FILE INTERVAL_MS LINES\n");
    return 2;
  }
  const int64_t interval = std::atoll(argv[2]) * 1'000'000;
  const int fd = ::open(argv[1], O_RDWR | O_CREAT, 0644);
  if (fd < 0 || ::ftruncate(fd, kPages * kPage) != 0) {
    std::perror(argv[1]);
    return 1;
  }
  void* const mapping = ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapping == MAP_FAILED) {
    std::perror("mmap");
    return 1;
  }
  auto* const bytes = static_cast<volatile uint8_t*>(mapping);
  uint64_t count = 0;
  for (int64_t line = 0; line < std::atoll(argv[3]); ++line) {
    std::vector<int64_t> times;
    for (const int64_t end = Now() + interval; Now() < end;) {
      const size_t at = count++ % kPages * kPage;
      bytes[at] = static_cast<uint8_t>(count);
      const int64_t begun = Now();
      if (::msync(static_cast<char*>(mapping) + at, kPage, MS_SYNC) != 0) {
        std::perror("msync");
        return 1;
      }
      times.push_back(Now() - begun);
    }
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                     times.end());
    std::printf("%lld %zu\n", static_cast<long long>(times[times.size() / 2]), times.size());
    std::fflush(stdout);
  }
  return 0;
}
