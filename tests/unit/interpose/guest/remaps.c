/* SPDX-License-Identifier: BSD-3-Clause */
/* munmap in parts, mremap, mprotect, MAP_FIXED over a mapping. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/unit/interpose/guest/guest.h"

static void partial_munmap(const char* file) {
  size_t length;
  char* map = map_file(file, &length);
  CHECK(length == 8 * PAGE);
  CHECK(msync(map, length, MS_SYNC) == 0);
  store_text(map + 3 * PAGE, "handed over");
  store_text(map + 5 * PAGE, "still mapped");
  CHECK(munmap(map + 2 * PAGE, 2 * PAGE) == 0);
  tell("unmapped");
  wait_for_test();
  CHECK(msync(map + 4 * PAGE, 4 * PAGE, MS_SYNC) == 0);
  CHECK(munmap(map + PAGE / 2, PAGE) == -1 && errno == EINVAL);
  CHECK(munmap(map, length) == 0);
  tell("all");
  wait_for_test();
}

static void shrink(const char* file) {
  char* map = map_file(file, NULL);
  store_text(map + 6 * PAGE, "cut off");
  CHECK(mremap(map, 8 * PAGE, 4 * PAGE, 0) == map);
  tell("shrunk");
  wait_for_test();
  store_text(map + PAGE, "after");
  CHECK(msync(map, 4 * PAGE, MS_SYNC) == 0);
}

static void grow_in_place(const char* file) {
  int fd = open_file(file);
  char* room = mmap(NULL, 16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char* map = mmap(room, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  CHECK(munmap(room + 2 * PAGE, 14 * PAGE) == 0);
  store_text(map + PAGE, "before");
  CHECK(mremap(map, 2 * PAGE, 8 * PAGE, 0) == map);
  store_text(map + 7 * PAGE, "in the new part");
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
}

static void move_by_mremap(const char* file) {
  int fd = open_file(file);
  char* room = mmap(NULL, 32 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char* map = mmap(room, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, PAGE);
  CHECK(map == room);
  store_text(map, "dirty when it moves");
  CHECK(mremap(map, 2 * PAGE, 4 * PAGE, 0) == MAP_FAILED && errno == ENOMEM); /* no room there */
  char* moved = mremap(map, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE);
  CHECK(moved != MAP_FAILED && moved != map);
  CHECK(strcmp(moved, "dirty when it moves") == 0);
  store_text(moved + 3 * PAGE, "after the move");
  CHECK(msync(moved, 4 * PAGE, MS_SYNC) == 0);
  char* target = room + 16 * PAGE;
  CHECK(mremap(moved, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target);
  store_text(target + 2 * PAGE, "at the target");
  CHECK(msync(target, 4 * PAGE, MS_SYNC) == 0);
  char* copy = mremap(target, 0, 2 * PAGE, MREMAP_MAYMOVE);
  CHECK(copy != MAP_FAILED && copy != target);
  store_text(copy + 100, "through the copy");
  CHECK(strcmp(target + 100, "through the copy") == 0);
  CHECK(msync(copy, 2 * PAGE, MS_SYNC) == 0);
}

static void map_fixed_over(const char* file) {
  char* map = map_file(file, NULL);
  store_text(map + 2 * PAGE, "mapped over");
  CHECK(mmap(map + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
        map + 2 * PAGE);
  CHECK(map[2 * PAGE] == 0);
  tell("over");
  wait_for_test();
  store_text(map + 2 * PAGE, "not in the file");
  store_text(map + 3 * PAGE, "in the file");
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
}

static void protect_to_writable(const char* file) {
  int fd = open_file(file);
  char* map = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
  CHECK(map != MAP_FAILED);
  CHECK(mprotect(map + PAGE, PAGE, PROT_READ | PROT_WRITE) == 0);
  store_text(map + PAGE, "after mprotect");
  CHECK(mprotect(map + PAGE, PAGE, PROT_NONE) == 0);
  CHECK(msync(map, 4 * PAGE, MS_SYNC) == 0); /* what cannot be loaded any more is synced too */
}

const struct command remap_commands[] = {{"partial_munmap", partial_munmap},
                                         {"shrink", shrink},
                                         {"grow_in_place", grow_in_place},
                                         {"move_by_mremap", move_by_mremap},
                                         {"map_fixed_over", map_fixed_over},
                                         {"protect_to_writable", protect_to_writable},
                                         {NULL, NULL}};
