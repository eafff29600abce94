/* SPDX-License-Identifier: BSD-3-Clause */
/* libpmem and libpmem2 programs (run with PMEM_IS_PMEM_FORCE=1 or PMEM2_FORCE_GRANULARITY=CACHE_LINE). */
#include <fcntl.h>
#include <libpmem.h>
#include <libpmem2.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/unit/interpose/guest/guest.h"

static char* map_pmem(const char* file) {
  size_t length;
  int is_pmem;
  char* map = pmem_map_file(file, 0, 0, 0, &length, &is_pmem);
  CHECK(map != NULL && length == 8 * PAGE && is_pmem);
  CHECK(pmem_is_pmem(map, length));
  CHECK(!pmem_has_auto_flush());
  return map;
}

static void persist_one(const char* file) {
  char* map = map_pmem(file);
  store_text(map + PAGE + 13, "persisted");
  pmem_persist(map + PAGE + 13, 10);
  tell("persisted");
  wait_for_test();
  _exit(0);
}

static void flushes_and_drain(const char* file) {
  char* map = map_pmem(file);
  for (size_t i = 0; i < 40; ++i) {
    map[i * 640] = (char)('a' + i % 26);
    pmem_flush(map + i * 640, 1);
  }
  tell("flushed");
  wait_for_test();
  pmem_drain();
  tell("drained");
  wait_for_test();
  _exit(0);
}

static void more_flushes_than_fit(const char* file) {
  char* map = map_pmem(file);
  for (size_t i = 0; i < 300; ++i) {
    map[i * 100] = (char)('a' + i % 26);
    pmem_flush(map + i * 100, 1);
  }
  pmem_drain();
  _exit(0);
}

static void copies(const char* file) {
  char* map = map_pmem(file);
  CHECK(pmem_memcpy_persist(map, "one", 3) == map);
  CHECK(pmem_memset_persist(map + 100, 'b', 50) == map + 100);
  CHECK(pmem_memmove_persist(map + 200, map + 100, 20) == map + 200);
  tell("three");
  wait_for_test();
  pmem_memcpy_nodrain(map + PAGE, "two", 3);
  pmem_memset_nodrain(map + PAGE + 100, 'c', 50);
  pmem_memmove_nodrain(map + PAGE + 200, map, 3);
  pmem_memcpy(map + 2 * PAGE, "flags", 5, PMEM_F_MEM_NODRAIN);
  pmem_memset(map + 3 * PAGE, 'd', 9, PMEM_F_MEM_NOFLUSH); /* not covered by the drain */
  pmem_drain();
  tell("four");
  wait_for_test();
  pmem_memmove(map + 4 * PAGE, "last", 4, 0);
  CHECK(pmem_deep_persist(map + 3 * PAGE, 9) == 0);
  pmem_deep_flush(map + 3 * PAGE, 9);
  CHECK(pmem_deep_drain(map + 3 * PAGE, 9) == 0);
  map[5 * PAGE] = 'm';
  CHECK(pmem_msync(map + 5 * PAGE + 5, 1) == 0);
  CHECK(pmem_unmap(map, 8 * PAGE) == 0);
}

static void failing_flush(const char* file) {
  char* map = map_pmem(file);
  map[0] = 'x';
  pmem_persist(map, 1);
}

static void pmem2(const char* file) {
  struct pmem2_config* config;
  struct pmem2_source* source;
  struct pmem2_map* map;
  int fd = open_file(file);
  CHECK(pmem2_config_new(&config) == 0);
  CHECK(pmem2_source_from_fd(&source, fd) == 0);
  CHECK(pmem2_config_set_required_store_granularity(config, PMEM2_GRANULARITY_CACHE_LINE) == 0);
  CHECK(pmem2_map_new(&map, config, source) == 0);
  CHECK(pmem2_map_get_store_granularity(map) == PMEM2_GRANULARITY_CACHE_LINE);
  char* address = pmem2_map_get_address(map);
  store_text(address, "persist");
  pmem2_get_persist_fn(map)(address, 8);
  store_text(address + PAGE, "flush and drain");
  pmem2_get_flush_fn(map)(address + PAGE, 16);
  pmem2_get_drain_fn(map)();
  pmem2_get_memcpy_fn(map)(address + 2 * PAGE, "memcpy", 6, 0);
  pmem2_get_memmove_fn(map)(address + 3 * PAGE, "memmove", 7, PMEM2_F_MEM_NODRAIN);
  pmem2_get_memset_fn(map)(address + 4 * PAGE, 's', 7, 0);
  address[5 * PAGE] = 'e';
  CHECK(pmem2_deep_flush(map, address + 5 * PAGE, 1) == 0);
  tell("stored");
  wait_for_test();
  CHECK(pmem2_map_delete(&map) == 0);
  CHECK(pmem2_source_delete(&source) == 0);
  CHECK(pmem2_config_delete(&config) == 0);
}

const struct command pmem_commands[] = {{"persist_one", persist_one},
                                        {"flushes_and_drain", flushes_and_drain},
                                        {"more_flushes_than_fit", more_flushes_than_fit},
                                        {"copies", copies},
                                        {"failing_flush", failing_flush},
                                        {"pmem2", pmem2},
                                        {NULL, NULL}};
