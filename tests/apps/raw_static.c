/* SPDX-License-Identifier: BSD-3-Clause */
/* Stands for programs that no preload library reaches (static, Go): linked statically, its commits are made
 * of bare system calls. It takes in turn a store and msync through a shared mapping, and pwrite and fsync.
 *   raw_static write [--count N] [--slots N] [--how mmap|write|both] FILE      raw_static check FILE N
 */
#include <getopt.h>
#include <sys/syscall.h>

#include "tests/apps/slots.h"

enum How { kMmap, kWrite, kBoth };

static void Require(long result, const char* doing) {
  if (result < 0) Fail(errno, "%s", doing);
}

static void CommitMapped(const struct SlotFile* file, uint64_t number, const uint64_t* record) {
  uint64_t* slot = SlotOf(file, 0, number);
  StoreRecord(slot, record);
  const uintptr_t page = (uintptr_t)slot & ~(uintptr_t)4095;
  Require(syscall(SYS_msync, page, (uintptr_t)slot + kSlotBytes - page, MS_SYNC), "msync");
}

static void CommitWritten(const struct SlotFile* file, uint64_t number, const uint64_t* record) {
  const off_t offset = (char*)SlotOf(file, 0, number) - (char*)file->header;
  const long written = syscall(SYS_pwrite64, file->fd, record, (size_t)kSlotBytes, offset);
  Require(written, "pwrite");
  if (written != kSlotBytes) Fail(0, "pwrite: only %ld bytes", written);
  Require(syscall(number % 4 < 2 ? SYS_fsync : SYS_fdatasync, file->fd), "fsync");
}

static int ParseHow(const char* name) {
  if (strcmp(name, "mmap") == 0) return kMmap;
  if (strcmp(name, "write") == 0) return kWrite;
  return strcmp(name, "both") == 0 ? kBoth : -1;
}

static int Write(int argc, char** argv) {
  static const struct option kOptions[] = {{"count", required_argument, NULL, 'c'},
                                           {"slots", required_argument, NULL, 's'},
                                           {"how", required_argument, NULL, 'h'},
                                           {0}};
  uint64_t count = UINT64_MAX;
  uint64_t slots = 64;
  int how = kBoth;
  for (int option; (option = getopt_long(argc, argv, "", kOptions, NULL)) != -1;) {
    if (option == 'c') count = ParseNumber(optarg);
    if (option == 's') slots = ParseNumber(optarg);
    if (option == 'h') how = ParseHow(optarg);
    if (option == '?' || how < 0) return kExitUsage;
  }
  if (optind + 1 != argc) return kExitUsage;
  const int fd = OpenSlots(argv[optind], 1, slots);
  const struct SlotFile file = MapSlots(fd, how == kWrite ? PROT_READ : PROT_READ | PROT_WRITE, argv[optind]);
  const uint64_t first = LastWhole(&file, 0) + 1;
  for (uint64_t number = first; number - first < count; number++) {
    uint64_t record[kSlotWords];
    FillRecord(0, number, record);
    if (how == kWrite || (how == kBoth && number % 2 == 0))
      CommitWritten(&file, number, record);
    else
      CommitMapped(&file, number, record);
    Acknowledge(number);
  }
  return 0;
}

int main(int argc, char** argv) {
  int result = kExitUsage;
  if (argc > 1 && strcmp(argv[1], "write") == 0) result = Write(argc - 1, argv + 1);
  if (argc > 1 && strcmp(argv[1], "check") == 0) result = CheckSlots(argc - 2, argv + 2);
  if (result == kExitUsage)
    fputs("usage: raw_static write [--count N] [--slots N] [--how mmap|write|both] FILE | check FILE N\n",
          stderr);
  return result;
}
