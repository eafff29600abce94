/* SPDX-License-Identifier: BSD-3-Clause */
/* Commits records of a file of slots with libpmem, each with the way to flush that --how names; `all` takes
 * them in turn. pmem_writer write [--count N] [--slots N] [--how
 * persist|flush|memcpy|memmove|memset|nodrain|msync|deep|all] FILE pmem_writer check FILE N On tmpfs run it
 * with PMEM_IS_PMEM_FORCE=1. Where libpmem says that the file is no persistent memory, every way is
 * pmem_msync.
 */
#include <getopt.h>
#include <libpmem.h>

#include "tests/apps/slots.h"

static const char* const kWays[] = {"persist", "flush",   "memcpy", "memmove",
                                    "memset",  "nodrain", "msync",  "deep"};
enum { kWayCount = sizeof kWays / sizeof kWays[0], kAllWays = kWayCount };

static int WayOf(const char* name) {
  for (int way = 0; way < kWayCount; way++)
    if (strcmp(name, kWays[way]) == 0) return way;
  return strcmp(name, "all") == 0 ? kAllWays : -1;
}

static void CommitMsync(uint64_t* slot, const uint64_t* record) {
  StoreRecord(slot, record);
  if (pmem_msync(slot, kSlotBytes) != 0) Fail(errno, "pmem_msync");
}

/* Several flushes, of single cache lines and in no order, and one drain for all of them. */
static void CommitFlush(uint64_t* slot, const uint64_t* record) {
  StoreRecord(slot, record);
  pmem_flush((char*)slot + 192, 64);
  pmem_flush(slot, 64);
  pmem_flush((char*)slot + 64, 128);
  pmem_drain();
}

/* Copies and fills without a drain, then one drain. */
static void CommitNoDrain(uint64_t* slot, const uint64_t* record) {
  pmem_memset_nodrain(slot, 0, kSlotBytes);
  pmem_drain();
  pmem_memcpy_nodrain(slot + 16, record + 16, kSlotBytes / 2);
  pmem_memmove_nodrain(slot, record, kSlotBytes / 2);
  pmem_drain();
}

static void CommitDeep(uint64_t* slot, const uint64_t* record) {
  StoreRecord(slot, record);
  pmem_deep_flush(slot, kSlotBytes);
  if (pmem_deep_drain(slot, kSlotBytes) != 0) Fail(errno, "pmem_deep_drain");
}

static void Commit(int way, uint64_t* slot, const uint64_t* record) {
  switch (way) {
    case 0:
      StoreRecord(slot, record);
      pmem_persist(slot, kSlotBytes);
      return;
    case 1:
      CommitFlush(slot, record);
      return;
    case 2:
      pmem_memcpy_persist(slot, record, kSlotBytes);
      return;
    case 3:
      pmem_memmove_persist(slot, record, kSlotBytes);
      return;
    case 4:
      pmem_memset_persist(slot, 0, kSlotBytes);
      pmem_memcpy(slot, record, kSlotBytes, PMEM_F_MEM_NONTEMPORAL);
      return;
    case 5:
      CommitNoDrain(slot, record);
      return;
    case 6:
      CommitMsync(slot, record);
      return;
    default:
      CommitDeep(slot, record);
      return;
  }
}

static int Write(int argc, char** argv) {
  static const struct option kOptions[] = {{"count", required_argument, NULL, 'c'},
                                           {"slots", required_argument, NULL, 's'},
                                           {"how", required_argument, NULL, 'h'},
                                           {0}};
  uint64_t count = UINT64_MAX;
  uint64_t slots = 64;
  int how = kAllWays;
  for (int option; (option = getopt_long(argc, argv, "", kOptions, NULL)) != -1;) {
    if (option == 'c') count = ParseNumber(optarg);
    if (option == 's') slots = ParseNumber(optarg);
    if (option == 'h') how = WayOf(optarg);
    if (option == '?' || how < 0) return kExitUsage;
  }
  if (optind + 1 != argc) return kExitUsage;
  const char* path = argv[optind];
  close(OpenSlots(path, 1, slots));
  struct SlotFile file = {NULL, 0, -1};
  int is_pmem = 0;
  file.header = (struct SlotHeader*)pmem_map_file(path, 0, 0, 0, &file.bytes, &is_pmem);
  if (file.header == NULL) Fail(0, "pmem_map_file %s: %s", path, pmem_errormsg());
  RequireSlotHeader(&file, path);
  const uint64_t first = LastWhole(&file, 0) + 1;
  for (uint64_t number = first; number - first < count; number++) {
    uint64_t record[kSlotWords];
    FillRecord(0, number, record);
    const int way = how == kAllWays ? (int)(number % kWayCount) : how;
    Commit(is_pmem ? way : 6, SlotOf(&file, 0, number), record);
    Acknowledge(number);
  }
  if (pmem_unmap(file.header, file.bytes) != 0) Fail(errno, "pmem_unmap");
  return 0;
}

int main(int argc, char** argv) {
  int result = kExitUsage;
  if (argc > 1 && strcmp(argv[1], "write") == 0) result = Write(argc - 1, argv + 1);
  if (argc > 1 && strcmp(argv[1], "check") == 0) result = CheckSlots(argc - 2, argv + 2);
  if (result == kExitUsage)
    fputs("usage: pmem_writer write [--count N] [--slots N] [--how WAY] FILE | check FILE N\n", stderr);
  return result;
}
