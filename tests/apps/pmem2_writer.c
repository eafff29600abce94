/* SPDX-License-Identifier: BSD-3-Clause */
/* Commits records of a file of slots through the functions that libpmem2 hands out, taken in turn: persist,
 * flush and drain, memcpy, memmove, memset, and a deep flush. pmem2_writer write [--count N] [--slots N]
 * [--private-fd] FILE      pmem2_writer check FILE N
 * --private-fd closes the descriptor once the file is mapped. On tmpfs PMEM2_FORCE_GRANULARITY=CACHE_LINE
 * gives the paths of pmem.
 */
#include <getopt.h>
#include <libpmem2.h>

#include "tests/apps/slots.h"

struct Functions {
  struct pmem2_map* map;
  pmem2_persist_fn persist;
  pmem2_flush_fn flush;
  pmem2_drain_fn drain;
  pmem2_memcpy_fn copy;
  pmem2_memmove_fn move;
  pmem2_memset_fn set;
};

static void Require(int result, const char* doing) {
  if (result != 0) {
    fprintf(stderr, "%s: %s\n", doing, pmem2_errormsg());
    exit(kExitWrong);
  }
}

static struct Functions MapFile(int fd) {
  struct pmem2_config* config = NULL;
  struct pmem2_source* source = NULL;
  struct pmem2_map* map = NULL;
  Require(pmem2_config_new(&config), "pmem2_config_new");
  Require(pmem2_config_set_required_store_granularity(config, PMEM2_GRANULARITY_PAGE), "granularity");
  Require(pmem2_source_from_fd(&source, fd), "pmem2_source_from_fd");
  Require(pmem2_map_new(&map, config, source), "pmem2_map_new");
  Require(pmem2_source_delete(&source), "pmem2_source_delete");
  Require(pmem2_config_delete(&config), "pmem2_config_delete");
  return (struct Functions){map,
                            pmem2_get_persist_fn(map),
                            pmem2_get_flush_fn(map),
                            pmem2_get_drain_fn(map),
                            pmem2_get_memcpy_fn(map),
                            pmem2_get_memmove_fn(map),
                            pmem2_get_memset_fn(map)};
}

static void Commit(const struct Functions* f, uint64_t* slot, uint64_t number, const uint64_t* record) {
  switch (number % 6) {
    case 0:
      StoreRecord(slot, record);
      f->persist(slot, kSlotBytes);
      return;
    case 1:
      StoreRecord(slot, record);
      f->flush((char*)slot + 128, 128);
      f->flush(slot, 128);
      f->drain();
      return;
    case 2:
      f->copy(slot, record, kSlotBytes, 0);
      return;
    case 3:
      f->move(slot, record, kSlotBytes, PMEM2_F_MEM_NODRAIN);
      f->drain();
      return;
    case 4:
      f->set(slot, 0, kSlotBytes, 0);
      f->copy(slot, record, kSlotBytes, PMEM2_F_MEM_NONTEMPORAL);
      return;
    default:
      StoreRecord(slot, record);
      f->persist(slot, kSlotBytes);  // at page granularity a deep flush alone does nothing
      Require(pmem2_deep_flush(f->map, slot, kSlotBytes), "pmem2_deep_flush");
      return;
  }
}

static int Write(int argc, char** argv) {
  static const struct option kOptions[] = {{"count", required_argument, NULL, 'c'},
                                           {"slots", required_argument, NULL, 's'},
                                           {"private-fd", no_argument, NULL, 'p'},
                                           {0}};
  uint64_t count = UINT64_MAX;
  uint64_t slots = 64;
  int close_early = 0;
  for (int option; (option = getopt_long(argc, argv, "", kOptions, NULL)) != -1;) {
    if (option == 'c') count = ParseNumber(optarg);
    if (option == 's') slots = ParseNumber(optarg);
    if (option == 'p') close_early = 1;
    if (option == '?') return kExitUsage;
  }
  if (optind + 1 != argc) return kExitUsage;
  const int fd = OpenSlots(argv[optind], 1, slots);
  struct Functions functions = MapFile(fd);
  if (close_early) close(fd);
  const struct SlotFile file = {(struct SlotHeader*)pmem2_map_get_address(functions.map),
                                pmem2_map_get_size(functions.map), fd};
  RequireSlotHeader(&file, argv[optind]);
  const uint64_t first = LastWhole(&file, 0) + 1;
  for (uint64_t number = first; number - first < count; number++) {
    uint64_t record[kSlotWords];
    FillRecord(0, number, record);
    Commit(&functions, SlotOf(&file, 0, number), number, record);
    Acknowledge(number);
  }
  Require(pmem2_map_delete(&functions.map), "pmem2_map_delete");
  return 0;
}

int main(int argc, char** argv) {
  int result = kExitUsage;
  if (argc > 1 && strcmp(argv[1], "write") == 0) result = Write(argc - 1, argv + 1);
  if (argc > 1 && strcmp(argv[1], "check") == 0) result = CheckSlots(argc - 2, argv + 2);
  if (result == kExitUsage)
    fputs("usage: pmem2_writer write [--count N] [--slots N] [--private-fd] FILE | check FILE N\n", stderr);
  return result;
}
