/* SPDX-License-Identifier: BSD-3-Clause */
/* libpmirror: what a program that knows can ask for. */
#include "interpose/pmirror.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/interpose/guest/guest.h"

static void api(const char* file) {
  int fd = open_file(file);
  const char* what;
  char* map = pmirror_map(fd, 8 * PAGE, 0, 1);
  CHECK(map != NULL && pmirror_is_replicated(map, 8 * PAGE) && !pmirror_is_replicated(map, 9 * PAGE));
  CHECK(pmirror_error(&what) == 0 && *what == 0);
  store_text(map + 3 * PAGE, "second");
  store_text(map + 10, "first");
  struct pmirror_range ranges[] = {{map + 3 * PAGE, 7}, {map + 10, 6}, {map + 12, 2}};
  CHECK(pmirror_flush(ranges, 3) == 0);
  char own[64];
  struct pmirror_range outside = {own, sizeof own};
  CHECK(pmirror_flush(&outside, 1) == -1 && errno == EINVAL);
  tell("flushed");
  wait_for_test();
  map[5 * PAGE] = 's';
  CHECK(pmirror_sync(map + 5 * PAGE + 3, 1) == 0);
  tell("synced");
  wait_for_test();
  CHECK(pmirror_flush(ranges, 1) == -1 && errno == ENOSPC);
  CHECK(pmirror_error(&what) == ENOSPC && *what != 0);
  _exit(0);
}

static void api_without_preload(const char* file) {
  int fd = open_file(file);
  char* map = pmirror_map(fd, 8 * PAGE, 0, 1);
  struct pmirror_range range = {map + 5, 1};
  CHECK(map != NULL && !pmirror_is_replicated(map, PAGE));
  CHECK(pmirror_flush(&range, 1) == 0 && pmirror_sync(map, PAGE) == 0 && pmirror_error(NULL) == 0);
}

static struct pmirror_error_info last_error(void) {
  struct pmirror_error_info info = {.size = sizeof info};
  CHECK(pmirror_get_error_info(&info) == 0 && info.size == sizeof info);
  return info;
}

/* The replica answers as the test says: rightly, from a damaged copy, not at all for want of a good read. */
static void api_verify(const char* file) {
  int fd = open_file(file);
  struct stat status;
  CHECK(fstat(fd, &status) == 0);
  char* map = pmirror_map(fd, 8 * PAGE, 0, 1);
  CHECK(map != NULL && last_error().error == 0 && last_error().replica == -1);
  store_text(map + 3 * PAGE + 5, "verified");
  struct pmirror_range ranges[] = {{map + 10, 6}, {map + 3 * PAGE + 5, 9}};
  CHECK(pmirror_flush_verify(ranges, 2) == 0);
  CHECK(pmirror_flush_verify(ranges, 0) == 0);
  tell("verified");
  wait_for_test();
  CHECK(pmirror_flush_verify(ranges, 2) == -1 && errno == EILSEQ);
  struct pmirror_error_info info = last_error();
  CHECK(info.error == EILSEQ && info.action == PMIRROR_ACTION_FLUSH_VERIFY && info.replica == 0);
  CHECK(info.range.address == map + 3 * PAGE + 5 && info.range.length == 9);
  CHECK(info.file == status.st_ino && info.offset == 3 * PAGE + 5 && info.text[0] != 0);
  tell("damaged");
  wait_for_test();
  CHECK(pmirror_flush_verify(ranges, 2) == -1 && errno == EIO);
  CHECK(last_error().error == EIO && last_error().replica == 0);
  char own[64];
  struct pmirror_range outside = {own, sizeof own};
  CHECK(pmirror_flush_verify(&outside, 1) == -1 && errno == EINVAL);
  _exit(0);
}

/* Old and new programs meet old and new libraries. */
static void api_sizes(const char* file) {
  char* map = pmirror_map(open_file(file), 8 * PAGE, 0, 1);
  struct pmirror_attributes attributes;
  memset(&attributes, 0x77, sizeof attributes);
  attributes.size = offsetof(struct pmirror_attributes, domain);
  CHECK(pmirror_get_attributes(map, &attributes) == 0);
  CHECK(attributes.size == offsetof(struct pmirror_attributes, domain));
  CHECK(attributes.fundamental_error_range == PAGE && attributes.domain == 0x77777777);
  char larger[sizeof attributes + 64];
  memset(larger, 0x77, sizeof larger);
  const size_t size = sizeof larger;
  memcpy(larger, &size, sizeof size);
  CHECK(pmirror_get_attributes(map + 17, (struct pmirror_attributes*)(void*)larger) == 0);
  memcpy(&attributes, larger, sizeof attributes);
  CHECK(attributes.size == sizeof attributes && larger[sizeof attributes] == 0x77 && attributes.offset == 17);
  CHECK(attributes.state == PMIRROR_IN_SYNC && attributes.replicas == 1 && attributes.preloaded == 1);
  attributes.size = sizeof(size_t);
  CHECK(pmirror_get_attributes(map, &attributes) == -1 && errno == EINVAL);
  struct pmirror_error_info info = {.size = 4};
  CHECK(pmirror_get_error_info(&info) == -1 && errno == EINVAL);
  attributes.size = sizeof attributes;
  CHECK(pmirror_get_attributes(&size, &attributes) == -1 && errno == ENXIO);
}

static struct pmirror_completion* begin(const char* address, size_t length) {
  const struct pmirror_range range = {address, length};
  return pmirror_flush_async(&range, 1, 0);
}

/* The replica does not read at first: all of it waits, in bounded memory, and few frames bring it over then. */
static void api_async_many(const char* file) {
  static struct pmirror_completion* completions[PMIRROR_MAX_IN_FLIGHT];
  char* map = pmirror_map(open_file(file), 8 * PAGE, 0, 1);
  for (int i = 0; i < PMIRROR_MAX_IN_FLIGHT; ++i) {
    map[8 * i] = (char)('a' + i % 26);
    completions[i] = begin(map + 8 * i, 1);
    CHECK(completions[i] != NULL);
  }
  CHECK(begin(map, 1) == NULL && errno == EAGAIN);
  CHECK(!pmirror_completion_done(completions[0], NULL));
  CHECK(!pmirror_completion_wait(completions[0], 20, NULL));
  struct pmirror_error_info info = {.size = sizeof info};
  CHECK(pmirror_completion_error_info(completions[0], &info) == -1 && errno == EAGAIN);
  struct pollfd wait = {.fd = pmirror_completion_fd(completions[0]), .events = POLLIN, .revents = 0};
  CHECK(wait.fd >= 0 && pmirror_completion_fd(completions[0]) == wait.fd && poll(&wait, 1, 0) == 0);
  for (int i = 1; i < PMIRROR_MAX_IN_FLIGHT; i += 2) pmirror_completion_release(completions[i]);
  tell("begun");
  wait_for_test();
  CHECK(poll(&wait, 1, 20000) == 1 && wait.revents == POLLIN);
  for (int i = 0; i < PMIRROR_MAX_IN_FLIGHT; i += 2) {
    int error = -1;
    CHECK(pmirror_completion_wait(completions[i], 20000, &error) && error == 0);
    CHECK(pmirror_completion_error_info(completions[i], &info) == 0 && info.error == 0);
    pmirror_completion_release(completions[i]);
  }
  struct pmirror_completion* last = begin(map, 8 * PAGE);
  CHECK(last != NULL && pmirror_completion_wait(last, -1, NULL));
  wait.fd = pmirror_completion_fd(last); /* made when it is complete already */
  CHECK(poll(&wait, 1, 20000) == 1);
  pmirror_completion_release(last);
  CHECK(fcntl(wait.fd, F_GETFD) == -1); /* it went with the completion */
}

static void api_async_fails(const char* file) {
  char* map = pmirror_map(open_file(file), 8 * PAGE, 0, 1);
  struct pmirror_completion* completion = begin(map + 100, 4);
  int error = 0;
  CHECK(completion != NULL && pmirror_completion_wait(completion, 20000, &error) && error == ENOSPC);
  struct pmirror_error_info info = {.size = sizeof info};
  CHECK(pmirror_completion_error_info(completion, &info) == 0);
  CHECK(info.error == ENOSPC && info.range.address == map + 100 && info.offset == 100 && info.replica == 0);
  CHECK(last_error().error == 0); /* of this thread nothing has failed */
  const struct pmirror_range range = {map, 4};
  CHECK(pmirror_flush_async(&range, 0, 0) == NULL && errno == EINVAL);
  CHECK(pmirror_flush_async(&range, 1, 1u << 31) == NULL && errno == EINVAL);
  CHECK(pmirror_flush_async(&range, 1, PMIRROR_ATOMIC | PMIRROR_VERIFY) == NULL && errno == EINVAL);
  CHECK(begin((const char*)&range, 4) == NULL && errno == EINVAL);
  pmirror_completion_release(completion);
  pmirror_completion_release(NULL);
}

/* One frame with the flag of groups, or nothing. */
static void api_atomic(const char* file) {
  char* map = pmirror_map(open_file(file), 8 * PAGE, 0, 1);
  store_text(map + 10, "one");
  store_text(map + 3 * PAGE, "and two");
  struct pmirror_range ranges[65] = {{map + 3 * PAGE, 8}, {map + 10, 4}};
  CHECK(pmirror_flush_atomic(ranges, 2) == 0);
  for (size_t i = 0; i < 65; ++i) {
    ranges[i].address = map + i * 256;
    ranges[i].length = 256;
  }
  CHECK(pmirror_flush_atomic(ranges, 64) == 0);
  CHECK(pmirror_flush_atomic(ranges, 65) == -1 && errno == E2BIG);
  ranges[0].length = 257;
  CHECK(pmirror_flush_atomic(ranges, 64) == -1 && errno == E2BIG);
  CHECK(pmirror_flush_atomic(ranges, 0) == 0);
  char own[64];
  const struct pmirror_range outside = {own, sizeof own};
  CHECK(pmirror_flush_atomic(&outside, 1) == -1 && errno == EINVAL);
}

const struct command api_commands[] = {{"api", api},
                                       {"api_without_preload", api_without_preload},
                                       {"api_verify", api_verify},
                                       {"api_sizes", api_sizes},
                                       {"api_atomic", api_atomic},
                                       {"api_async_many", api_async_many},
                                       {"api_async_fails", api_async_fails},
                                       {NULL, NULL}};
