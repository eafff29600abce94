/* SPDX-License-Identifier: BSD-3-Clause */
/* mmap, msync and fsync as programs use them. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/interpose/guest/guest.h"

static void store_and_msync(const char* file) {
  size_t length;
  char* map = map_file(file, &length);
  errno = 7;
  store_text(map + 3 * PAGE + 100, "hello");
  CHECK(msync(map, length, MS_SYNC) == 0);
  CHECK(errno == 7);
  _Exit(0); /* nothing is left to hand over */
}

static void store_and_fsync(const char* file) {
  int fd = open_file(file);
  char* map = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(map != MAP_FAILED);
  store_text(map + PAGE, "fsync");
  CHECK(fsync(fd) == 0);
  store_text(map + 2 * PAGE, "fdatasync");
  CHECK(fdatasync(fd) == 0);
  store_text(map + 3 * PAGE, "sync_file_range");
  CHECK(sync_file_range(fd, 3 * PAGE, PAGE, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER) == 0);
}

static void store_and_syncfs(const char* file) {
  int fd = open_file(file);
  char* map = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(map != MAP_FAILED);
  store_text(map, "syncfs");
  CHECK(syncfs(fd) == 0);
  store_text(map + PAGE, "sync");
  sync();
}

static void through_another_mapping(const char* file) {
  size_t length;
  char* one = map_file(file, &length);
  char* other = map_file(file, NULL);
  store_text(one + PAGE, "stored through one");
  CHECK(msync(other, length, MS_SYNC) == 0);
  CHECK(strcmp(other + PAGE, "stored through one") == 0);
}

static void mmap_errors(const char* file) {
  int readable = open(file, O_RDONLY);
  int writable = open(file, O_WRONLY);
  int path = open(file, O_PATH);
  int both = open_file(file);
  CHECK(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, readable, 0) == MAP_FAILED && errno == EACCES);
  CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, writable, 0) == MAP_FAILED && errno == EACCES);
  CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, path, 0) == MAP_FAILED && errno == EBADF);
  CHECK(mmap(NULL, 0, PROT_READ, MAP_SHARED, both, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, both, 100) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(NULL, PAGE, PROT_READ, 0, both, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, 4444, 0) == MAP_FAILED && errno == EBADF);
  char* map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, readable, 0);
  CHECK(map != MAP_FAILED);
  CHECK(mprotect(map, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
  char* private = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, readable, 0);
  CHECK(private != MAP_FAILED);
  private[0] = 'x';
  CHECK(map[0] == 0);
}

static void msync_errors(const char* file) {
  size_t length;
  char* map = map_file(file, &length);
  map[0] = 'a';
  CHECK(msync(map, length, MS_SYNC | MS_ASYNC) == -1 && errno == EINVAL);
  CHECK(msync(map, length, 0x4000) == -1 && errno == EINVAL);
  CHECK(msync(map + 1, PAGE, MS_SYNC) == -1 && errno == EINVAL);
  CHECK(msync(map, length, MS_ASYNC) == 0);
  CHECK(msync(map, 0, MS_SYNC) == 0);
  tell("nothing yet");
  wait_for_test();
  CHECK(munmap(map + PAGE, PAGE) == 0);
  map[2 * PAGE] = 'c';
  CHECK(msync(map, 3 * PAGE, MS_SYNC) == -1 && errno == ENOMEM); /* all the same it synced what is there */
  CHECK(mlock(map, PAGE) == 0);
  CHECK(msync(map, PAGE, MS_SYNC | MS_INVALIDATE) == -1 && errno == EBUSY);
  _Exit(0);
}

static void fixed_and_hints(const char* file) {
  int fd = open_file(file);
  char* room = mmap(NULL, 16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(room != MAP_FAILED);
  char* fixed = mmap(room + 4 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 2 * PAGE);
  CHECK(fixed == room + 4 * PAGE);
  CHECK(mmap(fixed, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) == MAP_FAILED &&
        errno == EEXIST);
  CHECK(munmap(room + 8 * PAGE, PAGE) == 0);
  char* hinted = mmap(room + 8 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(hinted == room + 8 * PAGE);
  store_text(fixed + PAGE, "at offset three pages");
  store_text(hinted, "at offset zero");
  CHECK(msync(fixed, 2 * PAGE, MS_SYNC) == 0);
  CHECK(msync(hinted, PAGE, MS_SYNC) == 0);
}

static void populate(const char* file) {
  int fd = open_file(file);
  char* map = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  CHECK(map != MAP_FAILED);
  unsigned char resident[8];
  CHECK(mincore(map, 8 * PAGE, resident) == 0);
  for (int i = 0; i < 8; ++i) CHECK((resident[i] & 1) != 0);
  map[5 * PAGE] = 'p';
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
}

static void map_sync(const char* file) {
  int fd = open_file(file);
  CHECK(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0) == MAP_FAILED);
  CHECK(errno == EOPNOTSUPP); /* what the backing file system says */
  CHECK(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE, fd, 0) != MAP_FAILED);
}

static void sparse_gigabyte(const char* file) {
  size_t length;
  char* map = map_file(file, &length);
  CHECK(length == 1ul << 30);
  map[700ul << 20] = 'x';
  CHECK(msync(map, length, MS_SYNC) == 0);
  struct stat status;
  CHECK(stat(file, &status) == 0);
  CHECK(status.st_blocks <= 8 * 2); /* no hole was filled */
}

static void terabyte_of_address_space(const char* file) {
  int fd = open_file(file);
  size_t length = 1ul << 40;
  char* map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  CHECK(map != MAP_FAILED);
  map[PAGE] = 't';
  CHECK(msync(map, length, MS_SYNC) == 0);
  map[2 * PAGE] = 't';
  CHECK(fsync(fd) == 0);
  FILE* status = fopen("/proc/self/status", "r");
  char line[256];
  unsigned long page_tables = 0;
  while (fgets(line, sizeof line, status) != NULL) {
    if (strncmp(line, "VmPTE:", 6) == 0) page_tables = strtoul(line + 6, NULL, 10);
  }
  CHECK(fclose(status) == 0 && page_tables > 0 && page_tables < 4096);
  CHECK(munmap(map, length) == 0);
}

static void grow_then_store(const char* file) {
  int fd = open_file(file);
  char* map = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0); /* more than the file has */
  CHECK(map != MAP_FAILED);
  CHECK(ftruncate(fd, 64 * PAGE) == 0);
  map[50 * PAGE] = 'g';
  CHECK(msync(map, 64 * PAGE, MS_SYNC) == 0);
}

static void read_into_mapping(const char* file) {
  size_t length;
  char* map = map_file(file, &length);
  CHECK(msync(map, length, MS_SYNC) == 0);
  int zero = open("/proc/self/cmdline", O_RDONLY);
  CHECK(read(zero, map + 2 * PAGE, 5) == 5); /* the kernel stores */
  CHECK(msync(map, length, MS_SYNC) == 0);
}

static void many_dirty_pages(const char* file) {
  size_t length;
  char* map = map_file(file, &length);
  for (size_t at = 0; at < length; at += 2 * PAGE) map[at + 8] = (char)(at / PAGE + 1);
  CHECK(msync(map, length, MS_SYNC) == 0);
}

static void failing_msync(const char* file) {
  size_t length;
  char* map = map_file(file, &length);
  store_text(map + PAGE, "kept dirty");
  CHECK(msync(map, length, MS_SYNC) == -1 && errno == EIO);
  tell("failed");
  wait_for_test();
  CHECK(msync(map, length, MS_SYNC) == 0); /* no store in between */
  _Exit(0);
}

static void tell_after_mmap(const char* file) {
  size_t length;
  char* map = map_file(file, &length);
  tell("mapped");
  wait_for_test();
  store_text(map, "others");
  CHECK(msync(map, length, MS_SYNC) == 0);
}

static void holes_and_advice(const char* file) {
  size_t length;
  char* map = map_file(file, &length);
  memset(map, 'f', length);
  CHECK(msync(map, length, MS_SYNC) == 0);
  CHECK(madvise(map + PAGE, PAGE, MADV_REMOVE) == 0); /* zeros from here on */
  CHECK(msync(map, length, MS_SYNC) == 0);
  map[3 * PAGE] = 'd';
  CHECK(madvise(map, length, MADV_DONTNEED) == 0); /* the store is in the file */
  CHECK(msync(map, length, MS_SYNC) == 0);
  CHECK(madvise(map, length, MADV_RANDOM) == 0);
  CHECK(remap_file_pages(map, PAGE, 0, 1, 0) == -1 && errno == EINVAL);
}

const struct command map_commands[] = {{"store_and_msync", store_and_msync},
                                       {"store_and_fsync", store_and_fsync},
                                       {"store_and_syncfs", store_and_syncfs},
                                       {"through_another_mapping", through_another_mapping},
                                       {"mmap_errors", mmap_errors},
                                       {"msync_errors", msync_errors},
                                       {"fixed_and_hints", fixed_and_hints},
                                       {"populate", populate},
                                       {"map_sync", map_sync},
                                       {"sparse_gigabyte", sparse_gigabyte},
                                       {"terabyte_of_address_space", terabyte_of_address_space},
                                       {"grow_then_store", grow_then_store},
                                       {"read_into_mapping", read_into_mapping},
                                       {"many_dirty_pages", many_dirty_pages},
                                       {"failing_msync", failing_msync},
                                       {"tell_after_mmap", tell_after_mmap},
                                       {"holes_and_advice", holes_and_advice},
                                       {NULL, NULL}};
