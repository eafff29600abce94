/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads that sync, map, and are cancelled. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/interpose/guest/guest.h"

#define THREADS 8
#define ROUNDS 200

static char* shared;
static const char* shared_file;

static void* syncs(void* argument) {
  size_t self = (size_t)argument;
  for (int round = 1; round <= ROUNDS; ++round) {
    ((volatile unsigned long*)shared)[self] = (unsigned long)round;
    ((volatile unsigned long*)(shared + (1 + self % 3) * PAGE))[self] = (unsigned long)round;
    CHECK(msync(shared, 8 * PAGE, MS_SYNC) == 0);
  }
  return NULL;
}

static void many_sync(const char* file) {
  pthread_t threads[THREADS];
  shared = map_file(file, NULL);
  for (size_t i = 0; i < THREADS; ++i) CHECK(pthread_create(&threads[i], NULL, syncs, (void*)i) == 0);
  for (size_t i = 0; i < THREADS; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
  _exit(0);
}

static atomic_int stop;
static void* maps_and_unmaps(void* argument) {
  (void)argument;
  while (!atomic_load(&stop)) {
    char* map = map_file(shared_file, NULL);
    map[5 * PAGE] = 'm';
    CHECK(munmap(map, 8 * PAGE) == 0);
  }
  return NULL;
}

static void* forks(void* argument) {
  (void)argument;
  while (!atomic_load(&stop)) {
    pid_t child = fork();
    if (child == 0) {
      CHECK(msync(shared, 8 * PAGE, MS_SYNC) == 0);
      _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
  }
  return NULL;
}

static void sync_beside(const char* file, void* (*other)(void*)) {
  pthread_t threads[THREADS], beside;
  shared = map_file(file, NULL);
  shared_file = file;
  CHECK(pthread_create(&beside, NULL, other, NULL) == 0);
  for (size_t i = 0; i < 3; ++i) CHECK(pthread_create(&threads[i], NULL, syncs, (void*)i) == 0);
  for (size_t i = 0; i < 3; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
  atomic_store(&stop, 1);
  CHECK(pthread_join(beside, NULL) == 0);
}

static void sync_beside_mapping(const char* file) { sync_beside(file, maps_and_unmaps); }
static void sync_beside_forking(const char* file) { sync_beside(file, forks); }

/* One thread unmaps what another is syncing: as with the kernel, ENOMEM or success, never a fault. */
static void* syncs_vanishing(void* argument) {
  (void)argument;
  while (!atomic_load(&stop)) {
    if (msync(shared, 8 * PAGE, MS_SYNC) != 0) CHECK(errno == ENOMEM);
  }
  return NULL;
}

static void unmap_under_sync(const char* file) {
  int fd = open_file(file);
  pthread_t thread;
  shared = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(shared != MAP_FAILED);
  CHECK(pthread_create(&thread, NULL, syncs_vanishing, NULL) == 0);
  for (int round = 0; round < 500; ++round) {
    memset(shared, round, 8 * PAGE);
    CHECK(munmap(shared + 2 * PAGE, 4 * PAGE) == 0);
    CHECK(mmap(shared + 2 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 2 * PAGE) !=
          MAP_FAILED);
  }
  atomic_store(&stop, 1);
  CHECK(pthread_join(thread, NULL) == 0);
}

static void* cancelled(void* argument) {
  (void)argument;
  shared[PAGE] = 'c';
  tell("syncing");
  msync(shared, 8 * PAGE, MS_SYNC);
  for (;;) pause();
  return NULL;
}

/* Cancellation in the middle of a sync: the sync is finished or failed, nothing of ours is left locked. */
static void cancel_in_sync(const char* file) {
  pthread_t thread;
  void* result;
  shared = map_file(file, NULL);
  CHECK(pthread_create(&thread, NULL, cancelled, NULL) == 0);
  wait_for_test();
  CHECK(pthread_cancel(thread) == 0);
  tell("cancelled");
  CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
  shared[2 * PAGE] = 'd';
  CHECK(msync(shared, 8 * PAGE, MS_SYNC) == 0);
  _exit(0);
}

/* Every 8-byte word of a page always holds one of the values that were stored whole. */
static void* stores_words(void* argument) {
  (void)argument;
  for (unsigned long value = 0; !atomic_load(&stop); ++value) {
    unsigned long word = (value & 0xff) * 0x0101010101010101ul;
    for (size_t i = 0; i < PAGE / 8; ++i) ((volatile unsigned long*)shared)[i] = word;
  }
  return NULL;
}

static void words_while_syncing(const char* file) {
  pthread_t thread;
  shared = map_file(file, NULL);
  CHECK(pthread_create(&thread, NULL, stores_words, NULL) == 0);
  for (int round = 0; round < 500; ++round) CHECK(msync(shared, PAGE, MS_SYNC) == 0);
  tell("synced");
  wait_for_test();
  atomic_store(&stop, 1);
  CHECK(pthread_join(thread, NULL) == 0);
}

const struct command thread_commands[] = {{"many_sync", many_sync},
                                          {"sync_beside_mapping", sync_beside_mapping},
                                          {"sync_beside_forking", sync_beside_forking},
                                          {"unmap_under_sync", unmap_under_sync},
                                          {"cancel_in_sync", cancel_in_sync},
                                          {"words_while_syncing", words_while_syncing},
                                          {NULL, NULL}};
