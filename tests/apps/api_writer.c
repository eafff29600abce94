/* SPDX-License-Identifier: BSD-3-Clause */
/* Commits records of a file of slots by the functions of pmirror.h: the example of how a program uses them, and the
 * only program here that knows of pmirror.
 *   api_writer write [--count N] [--slots N] FILE
 *   api_writer check FILE N
 * It works in any directory. On a volume of pmirror a commit that was acknowledged is on the replicas, under the
 * preload library by flushes of the record alone, without it by msync of its page.
 */
#include <getopt.h>
#include <poll.h>

#include "interpose/pmirror.h"
#include "tests/apps/slots.h"

/* The mapping's attributes; all zero where pmirror does not carry it. */
static struct pmirror_attributes AttributesOf(const void* address) {
  struct pmirror_attributes attributes;
  memset(&attributes, 0, sizeof attributes);
  attributes.size = sizeof attributes;
  if (pmirror_get_attributes(address, &attributes) != 0) memset(&attributes, 0, sizeof attributes);
  return attributes;
}

static void __attribute__((noreturn)) FailWithInfo(const char* call) {
  const int error = errno;
  struct pmirror_error_info info = {.size = sizeof info};
  if (pmirror_get_error_info(&info) != 0 || info.error == 0) Fail(error, "%s", call);
  Fail(error, "%s: %s (bytes %llu to %llu of the file, replica %s)", call, info.text,
       (unsigned long long)info.offset, (unsigned long long)(info.offset + info.range.length),
       info.replica >= 0 ? info.replica_node : "-");
}

/* The body first, its number when the body is safe: two flushes instead of words that prove themselves. */
static void CommitInOrder(uint64_t* slot, const uint64_t* record) {
  StoreRecord(slot, record);
  const struct pmirror_range body = {slot + 1, kSlotBytes - sizeof *slot};
  const struct pmirror_range number = {slot, sizeof *slot};
  if (pmirror_flush(&body, 1) != 0 || pmirror_flush(&number, 1) != 0) FailWithInfo("pmirror_flush");
}

/* Two halves by one call: about one round trip. */
static void CommitTogether(uint64_t* slot, const uint64_t* record) {
  StoreRecord(slot, record);
  const struct pmirror_range halves[] = {{slot + kSlotWords / 2, kSlotBytes / 2}, {slot, kSlotBytes / 2}};
  if (pmirror_flush(halves, 2) != 0) FailWithInfo("pmirror_flush");
}

/* Begins a flush, does something else, and waits for it with poll. */
static void CommitLater(uint64_t* slot, const uint64_t* record) {
  StoreRecord(slot, record);
  const struct pmirror_range range = {slot, kSlotBytes};
  struct pmirror_completion* completion = pmirror_flush_async(&range, 1, 0);
  if (completion == NULL) Fail(errno, "pmirror_flush_async");
  struct pollfd wait = {.fd = pmirror_completion_fd(completion), .events = POLLIN, .revents = 0};
  if (wait.fd < 0) Fail(errno, "pmirror_completion_fd");
  while (poll(&wait, 1, -1) < 0 && errno == EINTR) {
  }
  int error = 0;
  if (!pmirror_completion_done(completion, &error)) Fail(0, "readable and not complete");
  pmirror_completion_release(completion);
  if (error != 0) Fail(error, "asynchronous flush");
}

/* Has the replicas read back what they hold. */
static void CommitVerified(uint64_t* slot, const uint64_t* record) {
  StoreRecord(slot, record);
  const struct pmirror_range range = {slot, kSlotBytes};
  if (pmirror_flush_verify(&range, 1) != 0 && errno != EHOSTDOWN) FailWithInfo("pmirror_flush_verify");
}

static void CommitPage(uint64_t* slot, const uint64_t* record) {
  StoreRecord(slot, record);
  if (pmirror_sync(slot, kSlotBytes) != 0) FailWithInfo("pmirror_sync");
}

static int Write(int argc, char** argv) {
  static const struct option kOptions[] = {
      {"count", required_argument, NULL, 'c'}, {"slots", required_argument, NULL, 's'}, {0}};
  uint64_t count = UINT64_MAX;
  uint64_t slots = 64;
  for (int option; (option = getopt_long(argc, argv, "", kOptions, NULL)) != -1;) {
    if (option == 'c') count = ParseNumber(optarg);
    if (option == 's') slots = ParseNumber(optarg);
    if (option == '?') return kExitUsage;
  }
  if (optind + 1 != argc) return kExitUsage;
  const char* path = argv[optind];
  struct SlotFile file = {NULL, 0, OpenSlots(path, 1, slots)};
  struct stat status;
  if (fstat(file.fd, &status) != 0) Fail(errno, "stat %s", path);
  file.bytes = (size_t)status.st_size;
  file.header = (struct SlotHeader*)pmirror_map(file.fd, file.bytes, 0, 1);
  if (file.header == NULL) Fail(errno, "pmirror_map %s", path);
  RequireSlotHeader(&file, path);
  const uint32_t can = AttributesOf(file.header).capabilities;
  const uint64_t first = LastWhole(&file, 0) + 1;
  for (uint64_t number = first; number - first < count; number++) {
    uint64_t record[kSlotWords];
    FillRecord(0, number, record);
    uint64_t* slot = SlotOf(&file, 0, number);
    const int way = (int)(number % 5);
    if (way == 0) CommitInOrder(slot, record);
    if (way == 1) CommitTogether(slot, record);
    if (way == 2) CommitLater(slot, record);
    if (way == 3 && (can & PMIRROR_CAN_VERIFY) != 0) CommitVerified(slot, record);
    if (way == 3 && (can & PMIRROR_CAN_VERIFY) == 0) CommitTogether(slot, record);
    if (way == 4) CommitPage(slot, record);
    Acknowledge(number);
  }
  return munmap(file.header, file.bytes) == 0 ? 0 : kExitWrong;
}

int main(int argc, char** argv) {
  int result = kExitUsage;
  if (argc > 1 && strcmp(argv[1], "write") == 0) result = Write(argc - 1, argv + 1);
  if (argc > 1 && strcmp(argv[1], "check") == 0) result = CheckSlots(argc - 2, argv + 2);
  if (result == kExitUsage)
    fputs("usage: api_writer write [--count N] [--slots N] FILE | check FILE N\n", stderr);
  return result;
}
