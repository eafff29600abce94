/* SPDX-License-Identifier: BSD-3-Clause */
/* What the library costs: allocations on the sync path, memory, threads. The guest brings its own malloc,
 * which counts. */
#include <dirent.h>
#include <libpmem.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/unit/interpose/guest/guest.h"

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
static atomic_ulong allocations;

/* NOLINTBEGIN(readability-inconsistent-declaration-parameter-name): libc's declarations have reserved names
 */
void* malloc(size_t size) {
  atomic_fetch_add(&allocations, 1);
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  atomic_fetch_add(&allocations, 1);
  return __libc_calloc(count, size);
}
void* realloc(void* old, size_t size) {
  atomic_fetch_add(&allocations, 1);
  return __libc_realloc(old, size);
}

/* NOLINTEND(readability-inconsistent-declaration-parameter-name) */

static void no_allocation(const char* file) {
  size_t length;
  char* map = map_file(file, &length);
  map[0] = 1;
  CHECK(msync(map, length, MS_SYNC) == 0); /* set-up ends here */
  pmem_persist(map, 1);
  unsigned long before = atomic_load(&allocations);
  for (int i = 0; i < 100; ++i) {
    map[(size_t)(i % 8) * PAGE] = (char)i;
    CHECK(msync(map, length, MS_SYNC) == 0);
    map[(size_t)(i % 8) * PAGE + 64] = (char)i;
    pmem_persist(map + (size_t)(i % 8) * PAGE + 64, 1);
  }
  CHECK(atomic_load(&allocations) == before);
  CHECK(before > 0 || malloc(1) != NULL); /* the counter counts */
}

static unsigned long resident_kib(void) {
  FILE* file = fopen("/proc/self/status", "r");
  char line[256];
  unsigned long kib = 0;
  CHECK(file != NULL);
  while (fgets(line, sizeof line, file) != NULL) {
    if (strncmp(line, "RssAnon:", 8) == 0) kib = strtoul(line + 8, NULL, 10);
  }
  fclose(file);
  return kib;
}

/* Resident private memory beside the staging buffers, whose size is the library's choice and independent of
 * the mapping. */
static void small_footprint(const char* file) {
  unsigned long before = resident_kib();
  size_t length;
  char* map = map_file(file, &length);
  map[0] = 1;
  CHECK(msync(map, length, MS_SYNC) == 0);
  CHECK(resident_kib() - before < 4096);
}

static void no_thread(const char* file) {
  size_t length;
  char* map = map_file(file, &length);
  map[0] = 1;
  CHECK(msync(map, length, MS_SYNC) == 0);
  DIR* list = opendir("/proc/self/task");
  int threads = 0;
  for (struct dirent* entry; (entry = readdir(list)) != NULL;) threads += entry->d_name[0] != '.';
  CHECK(threads == 1);
}

static void nothing_mapped(const char* file) {
  (void)file;
  char* map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  map[0] = 1;
  CHECK(munmap(map, PAGE) == 0);
}

const struct command memory_commands[] = {{"no_allocation", no_allocation},
                                          {"small_footprint", small_footprint},
                                          {"no_thread", no_thread},
                                          {"nothing_mapped", nothing_mapped},
                                          {NULL, NULL}};
