/* SPDX-License-Identifier: BSD-3-Clause */
/* fork and its kin, exec, the ways to exit. */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/interpose/guest/guest.h"

static void reap(pid_t child) {
  int status;
  CHECK(child > 0);
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void child_stores(char* map) {
  store_text(map + 2 * PAGE, "by the child");
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
  _exit(0);
}

/* The parent's store must survive that the child syncs first, and be its own to send. */
static void fork_and_sync(const char* file, pid_t (*make)(void)) {
  char* map = map_file(file, NULL);
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
  store_text(map + PAGE, "by the parent");
  errno = 7;
  pid_t child = make();
  CHECK(errno == 7);
  if (child == 0) child_stores(map);
  reap(child);
  tell("child done");
  wait_for_test();
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
  _exit(0);
}

/* The test replaces the daemon while "stored" is told. */
static void sync_over_another_daemon(const char* file) {
  char* map = map_file(file, NULL);
  store_text(map, "before");
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
  store_text(map + PAGE, "during");
  tell("stored");
  wait_for_test();
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
  tell("synced");
  wait_for_test();
  store_text(map + 2 * PAGE, "after");
  CHECK(msync(map + 2 * PAGE, PAGE, MS_SYNC) == 0);
  pid_t child = fork();
  if (child == 0) {
    store_text(map + 3 * PAGE, "by the child");
    CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
    _exit(0);
  }
  reap(child);
  _exit(0);
}

static pid_t raw_clone(void) { return (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL); }

static void fork_command(const char* file) { fork_and_sync(file, fork); }
static void underscore_fork(const char* file) { fork_and_sync(file, _Fork); }
static void clone_command(const char* file) { fork_and_sync(file, raw_clone); }

static void grandchild(const char* file) {
  char* map = map_file(file, NULL);
  pid_t child = fork();
  if (child == 0) {
    store_text(map, "child");
    pid_t grand = fork();
    if (grand == 0) {
      store_text(map + PAGE, "grandchild");
      CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
      _exit(0);
    }
    reap(grand);
    CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
    _exit(0);
  }
  reap(child);
}

static void child_maps_itself(const char* file) {
  pid_t child = fork();
  if (child == 0) {
    size_t length;
    char* map = map_file(file, &length);
    store_text(map, "first mapping of a child");
    CHECK(msync(map, length, MS_SYNC) == 0);
    exit(0);
  }
  reap(child);
}

static void dont_fork(const char* file) {
  void* address = (void*)0x200000000000; /* where nothing else will be put */
  char* map = mmap(address, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, open_file(file), 0);
  CHECK(map == address);
  CHECK(madvise(map, 8 * PAGE, MADV_DONTFORK) == 0);
  pid_t child = fork();
  if (child == 0) {
    CHECK(msync(map, PAGE, MS_SYNC) == -1 && errno == ENOMEM);
    char* other = mmap(map, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(other == map);
    other[0] = 'x';
    CHECK(munmap(other, PAGE) == 0);
    _exit(0);
  }
  reap(child);
  store_text(map, "parent");
  CHECK(msync(map, PAGE, MS_SYNC) == 0);
}

static void spawn_things(const char* file) {
  char* map = map_file(file, NULL);
  store_text(map, "before");
  char* arguments[] = {"true", NULL};
  pid_t child;
  CHECK(posix_spawnp(&child, "true", NULL, NULL, arguments, environ) == 0);
  reap(child);
  FILE* pipe = popen("echo from a shell", "r"); /* NOLINT(cert-env33-c): what is tested */
  char line[64];
  CHECK(pipe != NULL && fgets(line, sizeof line, pipe) != NULL && strcmp(line, "from a shell\n") == 0);
  CHECK(pclose(pipe) == 0);
  child = vfork();
  if (child == 0) {
    execlp("true", "true", (char*)NULL);
    _exit(1);
  }
  reap(child);
  child = vfork();
  if (child == 0) {
    execl("/nonexistent", "x", (char*)NULL);
    _exit(0);
  }
  reap(child);
  store_text(map + PAGE, "after");
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
  _exit(0);
}

static void exec_hands_over(const char* file) {
  char* map = map_file(file, NULL);
  store_text(map + 4 * PAGE, "dirty at exec");
  CHECK(execl("/nonexistent", "x", (char*)NULL) == -1 && errno == ENOENT);
  tell("failed");
  wait_for_test();
  store_text(map + 5 * PAGE, "still here");
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
  store_text(map + 6 * PAGE, "dirty at the second exec");
  char* environment[] = {"A=b", NULL};
  execle("/bin/sh", "sh", "-c", "test \"$A\" = b && test \"$0\" = zero", "zero", (char*)NULL, environment);
}

static void dirty_at_exit(const char* file) {
  char* map = map_file(file, NULL);
  store_text(map + PAGE, "exit");
  exit(0);
}

static char* late_map;
static void store_late(void) { store_text(late_map + 2 * PAGE, "in a handler"); }
static void dirty_in_exit_handler(const char* file) {
  late_map = map_file(file, NULL);
  CHECK(atexit(store_late) == 0);
  exit(0);
}

static void dirty_at_underscore_exit(const char* file) {
  char* map = map_file(file, NULL);
  store_text(map + 3 * PAGE, "_exit");
  _exit(0);
}

static void dirty_at_quick_exit(const char* file) {
  char* map = map_file(file, NULL);
  store_text(map + 4 * PAGE, "quick_exit");
  quick_exit(0);
}

static void sync_after_setuid(const char* file) {
  int fd = open_file(file);
  CHECK(setgid(65534) == 0 && setuid(65534) == 0);
  char* map = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(map != MAP_FAILED);
  map[PAGE] = 'u';
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
  tell("once");
  wait_for_test();
  map[3 * PAGE] = 'u';
  CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
  _exit(0);
}

const struct command process_commands[] = {{"sync_over_another_daemon", sync_over_another_daemon},
                                           {"fork", fork_command},
                                           {"_Fork", underscore_fork},
                                           {"clone", clone_command},
                                           {"grandchild", grandchild},
                                           {"child_maps_itself", child_maps_itself},
                                           {"dont_fork", dont_fork},
                                           {"spawn_things", spawn_things},
                                           {"exec_hands_over", exec_hands_over},
                                           {"dirty_at_exit", dirty_at_exit},
                                           {"dirty_in_exit_handler", dirty_in_exit_handler},
                                           {"dirty_at_underscore_exit", dirty_at_underscore_exit},
                                           {"dirty_at_quick_exit", dirty_at_quick_exit},
                                           {"sync_after_setuid", sync_after_setuid},
                                           {NULL, NULL}};
