/* SPDX-License-Identifier: BSD-3-Clause */
/* Programs that close or overwrite every descriptor they do not know. */
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tests/unit/interpose/guest/guest.h"

static char* synced_map(const char* file) {
  char* map = map_file(file, NULL);
  map[0] = 'a';
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
  return map;
}

static void still_syncs(char* map) {
  map[PAGE] = 'b';
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
}

static void close_each(const char* file) {
  char* map = synced_map(file);
  struct rlimit limit;
  CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  for (int fd = 3; fd < (int)limit.rlim_cur && fd < 4096; ++fd) {
    if (close(fd) != 0) CHECK(errno == EBADF);
  }
  still_syncs(map);
}

static void closefrom_command(const char* file) {
  char* map = synced_map(file);
  int mine = open_file(file);
  closefrom(3);
  CHECK(fcntl(mine, F_GETFD) == -1 && errno == EBADF);
  still_syncs(map);
}

static void close_range_command(const char* file) {
  char* map = synced_map(file);
  int mine = open_file(file);
  int high = fcntl(mine, F_DUPFD, 2000);
  CHECK(high >= 0 || errno == EINVAL);
  CHECK(close_range(3, ~0u, 0) == 0);
  CHECK(fcntl(mine, F_GETFD) == -1 && errno == EBADF);
  if (high >= 0) CHECK(fcntl(high, F_GETFD) == -1 && errno == EBADF);
  CHECK(close_range(5, 3, 0) == -1 && errno == EINVAL);
  still_syncs(map);
}

/* Every number that is in use and not the program's becomes the program's own file; none of our frames may
 * ever end up in it. */
static void dup2_over_all(const char* file) {
  char* map = synced_map(file);
  char scratch[] = "/tmp/pmirror-guest-XXXXXX";
  int own = mkstemp(scratch);
  CHECK(own >= 0 && unlink(scratch) == 0);
  int taken = 0;
  for (int fd = own + 1; fd < 1024; ++fd) {
    if (fcntl(fd, F_GETFD) >= 0) {
      CHECK((fd % 2 == 0 ? dup2(own, fd) : dup3(own, fd, 0)) == fd);
      ++taken;
    }
  }
  CHECK(taken >= 3);
  still_syncs(map);
  char* again = map_file(file, NULL);
  again[2 * PAGE] = 'c';
  CHECK(msync(again, 8 * PAGE, MS_SYNC) == 0);
  CHECK(lseek(own, 0, SEEK_END) == 0); /* nobody wrote to it */
  CHECK(dup2(4000, 5) == -1 && errno == EBADF);
}

static void numbers_are_high(const char* file) {
  char* map = synced_map(file);
  DIR* list = opendir("/proc/self/fd");
  CHECK(list != NULL);
  for (struct dirent* entry; (entry = readdir(list)) != NULL;) {
    int fd = (int)strtol(entry->d_name, NULL, 10);
    char link[64], target[256] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    CHECK(entry->d_name[0] == '.' || readlink(link, target, sizeof target - 1) > 0);
    /* low numbers are what the test's own surroundings left open: none of the kinds that pmirror opens */
    if (fd < 512)
      CHECK(strstr(target, "socket:") == NULL && strstr(target, "anon_inode:") == NULL &&
            strstr(target, "map") == NULL);
    if (fd >= 512) CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
  }
  CHECK(closedir(list) == 0);
  still_syncs(map);
}

static void few_descriptors(const char* file) {
  char* map = synced_map(file);
  struct rlimit limit = {.rlim_cur = 16, .rlim_max = 1024};
  CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  still_syncs(map);
  char* again = map_file(file, NULL);
  again[3 * PAGE] = 'd';
  CHECK(msync(again, 8 * PAGE, MS_SYNC) == 0);
}

const struct command descriptor_commands[] = {{"close_each", close_each},
                                              {"closefrom", closefrom_command},
                                              {"close_range", close_range_command},
                                              {"dup2_over_all", dup2_over_all},
                                              {"numbers_are_high", numbers_are_high},
                                              {"few_descriptors", few_descriptors},
                                              {NULL, NULL}};
