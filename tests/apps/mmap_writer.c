/* SPDX-License-Identifier: BSD-3-Clause */
/* Commits records of a file of slots through a plain shared mapping, by one or several writers.
 *   mmap_writer write [--count N] [--slots N] [--writers N] [--fork] [--exec-every N] [--close-fd] [--sync
 * WAY] FILE mmap_writer check FILE N [N ...]      one number a writer
 *     --fork        writers 1, 2 ... are child processes that use the mapping they inherited, instead of
 * threads
 *     --exec-every  the program replaces itself by execve after so many commits and goes on (one writer)
 *     --close-fd    closes the descriptor after mmap
 *     --sync        msync (the pages of the record), msync-file (the whole mapping), fsync, fdatasync, async
 * (MS_ASYNC, then fsync), or all
 */
#include <getopt.h>
#include <pthread.h>
#include <sys/wait.h>

#include "tests/apps/slots.h"

enum Way { kMsync, kMsyncFile, kFsync, kFdatasync, kAsync, kWayCount };
static const char* const kWays[] = {"msync", "msync-file", "fsync", "fdatasync", "async"};

struct Options {
  uint64_t count;
  uint64_t slots;
  uint64_t exec_every;
  unsigned writers;
  int way; /* kWayCount: all of them in turn */
  int use_fork;
  int close_fd;
  const char* path;
  char** arguments; /* of main, for execve */
};

struct Writer {
  const struct SlotFile* file;
  const struct Options* options;
  unsigned index;
};

static void SyncPages(const struct SlotFile* file, const void* at, size_t bytes, int flags) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  const uintptr_t first = (uintptr_t)at & ~(page - 1);
  const uintptr_t end = (uintptr_t)at + bytes;
  if (msync((void*)first, end - first, flags) != 0)
    Fail(errno, "msync of %p in a mapping of %zu bytes", at, file->bytes);
}

static void Sync(const struct SlotFile* file, int way, const void* record) {
  switch (way) {
    case kMsync:
      SyncPages(file, record, kSlotBytes, MS_SYNC);
      return;
    case kMsyncFile:
      SyncPages(file, file->header, file->bytes, MS_SYNC);
      return;
    case kFsync:
      if (fsync(file->fd) != 0) Fail(errno, "fsync");
      return;
    case kFdatasync:
      if (fdatasync(file->fd) != 0) Fail(errno, "fdatasync");
      return;
    default:
      SyncPages(file, record, kSlotBytes, MS_ASYNC);
      if (fsync(file->fd) != 0) Fail(errno, "fsync");
      return;
  }
}

static int WayFor(const struct Options* options, uint64_t number) {
  if (options->way != kWayCount) return options->way;
  return (int)(number %
               (options->close_fd ? kFsync : kWayCount)); /* without a descriptor there is only msync */
}

static void ExecSelf(const struct Options* options) {
  execv("/proc/self/exe", options->arguments);
  Fail(errno, "execv");
}

static void* RunWriter(void* argument) {
  const struct Writer* writer = (const struct Writer*)argument;
  const struct Options* options = writer->options;
  const uint64_t first = LastWhole(writer->file, writer->index) + 1;
  /* After execve the count goes on where it was: it is the number of the last commit, not how many this image
   * made. */
  for (uint64_t number = first; number <= options->count; number++) {
    uint64_t record[kSlotWords];
    uint64_t* slot = SlotOf(writer->file, writer->index, number);
    FillRecord(writer->index, number, record);
    StoreRecord(slot, record);
    Sync(writer->file, WayFor(options, number), slot);
    AcknowledgeAs(writer->index, number);
    if (options->exec_every != 0 && number % options->exec_every == 0) ExecSelf(options);
  }
  return NULL;
}

static int RunThreads(struct Writer* writers, unsigned count) {
  pthread_t* threads = (pthread_t*)calloc(count, sizeof(pthread_t));
  for (unsigned i = 1; i < count; i++) {
    const int error = pthread_create(&threads[i], NULL, RunWriter, &writers[i]);
    if (error != 0) Fail(error, "pthread_create");
  }
  RunWriter(&writers[0]);
  for (unsigned i = 1; i < count; i++) pthread_join(threads[i], NULL);
  free(threads);
  return 0;
}

static int RunProcesses(struct Writer* writers, unsigned count) {
  for (unsigned i = 1; i < count; i++) {
    const pid_t child = fork();
    if (child < 0) Fail(errno, "fork");
    if (child == 0) {
      RunWriter(&writers[i]);
      exit(0);
    }
  }
  RunWriter(&writers[0]);
  int result = 0;
  for (unsigned i = 1; i < count; i++) {
    int status = 0;
    if (wait(&status) < 0 || status != 0) result = kExitWrong;
  }
  return result;
}

static int ParseWay(const char* name) {
  for (int way = 0; way < kWayCount; way++)
    if (strcmp(name, kWays[way]) == 0) return way;
  return strcmp(name, "all") == 0 ? kWayCount : -1;
}

/* 0, or kExitUsage. */
static int ParseOptions(int argc, char** argv, struct Options* options) {
  static const struct option kOptions[] = {
      {"count", required_argument, NULL, 'c'},   {"slots", required_argument, NULL, 's'},
      {"writers", required_argument, NULL, 'w'}, {"exec-every", required_argument, NULL, 'e'},
      {"sync", required_argument, NULL, 'y'},    {"fork", no_argument, NULL, 'f'},
      {"close-fd", no_argument, NULL, 'd'},      {0}};
  for (int option; (option = getopt_long(argc, argv, "", kOptions, NULL)) != -1;) {
    if (option == 'c') options->count = ParseNumber(optarg);
    if (option == 's') options->slots = ParseNumber(optarg);
    if (option == 'w') options->writers = (unsigned)ParseNumber(optarg);
    if (option == 'e') options->exec_every = ParseNumber(optarg);
    if (option == 'y') options->way = ParseWay(optarg);
    if (option == 'f') options->use_fork = 1;
    if (option == 'd') options->close_fd = 1;
    if (option == '?') return kExitUsage;
  }
  const int needs_fd = options->way == kFsync || options->way == kFdatasync || options->way == kAsync;
  if (optind + 1 != argc || options->way < 0 || options->writers == 0 ||
      (options->exec_every != 0 && options->writers != 1) || (needs_fd && options->close_fd))
    return kExitUsage;
  options->path = argv[optind];
  return 0;
}

static int Write(int argc, char** argv, char** arguments) {
  struct Options options = {
      .count = UINT64_MAX - 1, .slots = 64, .writers = 1, .way = kMsync, .arguments = arguments};
  if (ParseOptions(argc, argv, &options) != 0) return kExitUsage;
  const int fd = OpenSlots(options.path, options.writers, options.slots);
  struct SlotFile file = MapSlots(fd, PROT_READ | PROT_WRITE, options.path);
  if (file.header->writers != options.writers)
    Fail(0, "%s was made for another number of writers", options.path);
  if (options.close_fd) {
    close(fd);
    file.fd = -1;
  }
  struct Writer* writers = (struct Writer*)calloc(options.writers, sizeof *writers);
  for (unsigned i = 0; i < options.writers; i++) writers[i] = (struct Writer){&file, &options, i};
  const int result =
      options.use_fork ? RunProcesses(writers, options.writers) : RunThreads(writers, options.writers);
  free(writers);
  return result;
}

int main(int argc, char** argv) {
  int result = kExitUsage;
  if (argc > 1 && strcmp(argv[1], "write") == 0) {
    char** arguments = (char**)calloc((size_t)argc + 1, sizeof *arguments); /* getopt reorders argv */
    memcpy(arguments, argv, (size_t)argc * sizeof *arguments);
    result = Write(argc - 1, argv + 1, arguments);
    free(arguments);
  }
  if (argc > 1 && strcmp(argv[1], "check") == 0) result = CheckSlots(argc - 2, argv + 2);
  if (result == kExitUsage)
    fputs(
        "usage: mmap_writer write [--count N] [--slots N] [--writers N] [--fork] [--exec-every N] "
        "[--close-fd]\n"
        "                         [--sync msync|msync-file|fsync|fdatasync|async|all] FILE | check FILE N [N "
        "...]\n",
        stderr);
  return result;
}
