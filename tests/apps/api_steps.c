/* SPDX-License-Identifier: BSD-3-Clause */
/* The functions of pmirror.h, one call a line of standard input, for tests/cluster/api_test.py.
 *   api_steps FILE BYTES
 * Maps BYTES of FILE (made when it is not there). Each line is answered by one line: 0 or the errno, then what the call
 * gave, as NAME=VALUE words. Offsets and lengths are bytes of the mapping.
 *   store OFFSET LENGTH NUMBER     fills with a byte
 *   flush|verify|atomic|sync OFFSET LENGTH [OFFSET LENGTH ...]
 *   async FLAGS OFFSET LENGTH      id=
 *   wait ID MS, poll ID MS, release ID, why ID        done= error= ; poll waits with poll(2)
 *   error, attributes OFFSET, stranger (attributes of other memory), subscribe VOLUME|-, next MS, unsubscribe
 *   groups MOST                   flush groups until one fails      groups=
 *   fork ID                        a child finds ID cancelled, flushes on its own, and ends
 *   closefrom NUMBER               closes every descriptor from there on
 *   unmap
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "interpose/pmirror.h"
#include "tests/apps/records.h"

enum { kMaxWords = 16, kMaxCompletions = 5000, kHalf = 8192 };

static char* g_map;
static size_t g_bytes;
static struct pmirror_completion* g_completions[kMaxCompletions];
static int g_completion_count;
static struct pmirror_subscription* g_subscription;

static void Answer(int result) { printf("%d", result == 0 ? 0 : errno); }

static size_t Ranges(int count, char** words, struct pmirror_range* ranges) {
  size_t found = 0;
  for (int i = 0; i + 1 < count; i += 2) {
    ranges[found].address = g_map + ParseNumber(words[i]);
    ranges[found++].length = ParseNumber(words[i + 1]);
  }
  return found;
}

static void PrintInfo(const struct pmirror_error_info* info) {
  printf(" error=%d action=%d offset=%llu length=%zu place=%td replica=%d node=%s text=%s", info->error,
         info->action, (unsigned long long)info->offset, info->range.length,
         info->range.address == NULL ? -1 : (const char*)info->range.address - g_map, info->replica,
         info->replica_node, info->text);
}

static void PrintAttributes(const char* address) {
  struct pmirror_attributes a;
  memset(&a, 0x55, sizeof a);
  a.size = sizeof a;
  Answer(pmirror_get_attributes(address, &a));
  if (a.capabilities == 0x55555555) return;
  printf(" size=%d capabilities=%u preloaded=%u local=%u remote=%u power=%u group=%u granularity=%u",
         a.size == sizeof a, a.capabilities, a.preloaded, a.store_atomicity_local, a.store_atomicity_remote,
         a.store_atomicity_remote_power, a.group_atomicity, a.flush_granularity);
  printf(" error_range=%u error_offset=%u domain=%u state=%u policy=%u replicas=%u members=%u epoch=%llu",
         a.fundamental_error_range, a.fundamental_error_range_offset, a.domain, a.state, a.policy, a.replicas,
         a.members, (unsigned long long)a.epoch);
  printf(" file=%llu offset=%llu volume=%s node=%s deadline=%llu", (unsigned long long)a.file,
         (unsigned long long)a.offset, a.volume, a.nodes[0], (unsigned long long)a.deadline_ns);
}

static void PrintEvent(int timeout) {
  struct pmirror_event event = {.size = sizeof event};
  struct pollfd wait = {.fd = pmirror_subscription_fd(g_subscription), .events = POLLIN, .revents = 0};
  poll(&wait, 1, timeout);
  const int got = pmirror_next_event(g_subscription, &event);
  Answer(got < 0 ? -1 : 0);
  if (got == 1)
    printf(" kind=%u replica=%d node=%s state=%u members=%u lagging=%u version=%llu missed=%llu volume=%s",
           event.kind, event.replica, event.replica_node, event.state, event.members, event.lagging,
           (unsigned long long)event.set_version, (unsigned long long)event.missed, event.volume);
}

/* In a child of fork: its parent's flush is cancelled for it, and its own work. */
static int InChild(struct pmirror_completion* parents) {
  int error = 0;
  if (!pmirror_completion_done(parents, &error) || error != ECANCELED) return 1;
  pmirror_completion_release(parents);
  memset(g_map, 'c', 8);
  const struct pmirror_range range = {g_map, 8};
  struct pmirror_completion* own = pmirror_flush_async(&range, 1, 0);
  if (own == NULL) return 2;
  struct pollfd wait = {.fd = pmirror_completion_fd(own), .events = POLLIN, .revents = 0};
  if (poll(&wait, 1, 20000) != 1 || !pmirror_completion_done(own, &error)) return 3;
  return error == 0 ? 0 : 4;
}

static void Fork(struct pmirror_completion* completion) {
  const pid_t child = fork();
  if (child == 0) _exit(InChild(completion));
  int status = 0;
  waitpid(child, &status, 0);
  printf("%d", WIFEXITED(status) ? WEXITSTATUS(status) : 255);
}

static void OfCompletion(const char* call, struct pmirror_completion* completion, int timeout) {
  int error = -1;
  int done = 0;
  if (strcmp(call, "poll") == 0) {
    struct pollfd wait = {.fd = pmirror_completion_fd(completion), .events = POLLIN, .revents = 0};
    if (wait.fd < 0) {
      Answer(-1);
      return;
    }
    const int ready = poll(&wait, 1, timeout);
    done = pmirror_completion_done(completion, &error);
    printf("0 done=%d readable=%d error=%d", done, ready, error);
    return;
  }
  if (strcmp(call, "why") == 0) {
    struct pmirror_error_info info = {.size = sizeof info};
    Answer(pmirror_completion_error_info(completion, &info));
    PrintInfo(&info);
    return;
  }
  done = pmirror_completion_wait(completion, timeout, &error);
  printf("0 done=%d error=%d", done, error);
}

/* Groups of two halves that lie apart, one after the other, until one fails or there were `most`. */
static void Groups(uint64_t most) {
  const struct pmirror_range halves[] = {{g_map, kHalf}, {g_map + g_bytes - kHalf, kHalf}};
  uint64_t number = 0;
  int result = 0;
  while (result == 0 && number < most) {
    ++number;
    memset(g_map, (int)number, kHalf);
    memset(g_map + g_bytes - kHalf, (int)number, kHalf);
    result = pmirror_flush_atomic(halves, 2);
  }
  Answer(result);
  printf(" groups=%llu", (unsigned long long)number);
}

static void Call(int count, char** words) {
  struct pmirror_range ranges[kMaxWords];
  const char* call = words[0];
  const int number = count > 1 && words[1][0] != '-' ? atoi(words[1]) : 0;
  if (strcmp(call, "store") == 0) {
    memset(g_map + ParseNumber(words[1]), atoi(words[3]), ParseNumber(words[2]));
    printf("0");
  } else if (strcmp(call, "flush") == 0) {
    Answer(pmirror_flush(ranges, Ranges(count - 1, words + 1, ranges)));
  } else if (strcmp(call, "verify") == 0) {
    Answer(pmirror_flush_verify(ranges, Ranges(count - 1, words + 1, ranges)));
  } else if (strcmp(call, "atomic") == 0) {
    Answer(pmirror_flush_atomic(ranges, Ranges(count - 1, words + 1, ranges)));
  } else if (strcmp(call, "groups") == 0) {
    Groups(ParseNumber(words[1]));
  } else if (strcmp(call, "sync") == 0) {
    Answer(pmirror_sync(g_map + ParseNumber(words[1]), ParseNumber(words[2])));
  } else if (strcmp(call, "async") == 0) {
    struct pmirror_completion* made =
        pmirror_flush_async(ranges, Ranges(count - 2, words + 2, ranges), (unsigned)number);
    Answer(made == NULL ? -1 : 0);
    if (made != NULL) {
      printf(" id=%d", g_completion_count);
      g_completions[g_completion_count++] = made;
    }
  } else if (strcmp(call, "wait") == 0 || strcmp(call, "poll") == 0 || strcmp(call, "why") == 0) {
    OfCompletion(call, g_completions[number], count > 2 ? atoi(words[2]) : 0);
  } else if (strcmp(call, "release") == 0) {
    pmirror_completion_release(g_completions[number]);
    printf("0");
  } else if (strcmp(call, "error") == 0) {
    struct pmirror_error_info info = {.size = sizeof info};
    Answer(pmirror_get_error_info(&info));
    PrintInfo(&info);
  } else if (strcmp(call, "attributes") == 0) {
    PrintAttributes(g_map + number);
  } else if (strcmp(call, "stranger") == 0) {
    PrintAttributes((const char*)&g_bytes);
  } else if (strcmp(call, "subscribe") == 0) {
    g_subscription = pmirror_subscribe(words[1][0] == '-' ? NULL : words[1]);
    Answer(g_subscription == NULL ? -1 : 0);
  } else if (strcmp(call, "next") == 0) {
    PrintEvent(number);
  } else if (strcmp(call, "unsubscribe") == 0) {
    pmirror_unsubscribe(g_subscription);
    printf("0");
  } else if (strcmp(call, "fork") == 0) {
    Fork(g_completions[number]);
  } else if (strcmp(call, "closefrom") == 0) {
    closefrom(number);
    printf("0");
  } else if (strcmp(call, "unmap") == 0) {
    Answer(munmap(g_map, g_bytes));
  } else {
    Fail(0, "no call %s", call);
  }
  putchar('\n');
  fflush(stdout);
}

int main(int argc, char** argv) {
  if (argc != 3) return kExitUsage;
  g_bytes = ParseNumber(argv[2]);
  const int fd = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0 || ftruncate(fd, (off_t)g_bytes) != 0) Fail(errno, "open %s", argv[1]);
  g_map = pmirror_map(fd, g_bytes, 0, 1);
  if (g_map == NULL) Fail(errno, "map %s", argv[1]);
  puts("0");
  fflush(stdout);
  char line[512];
  while (fgets(line, sizeof line, stdin) != NULL) {
    char* words[kMaxWords];
    int count = 0;
    for (char* word = strtok(line, " \n"); word != NULL && count < kMaxWords; word = strtok(NULL, " \n"))
      words[count++] = word;
    if (count > 0) Call(count, words);
  }
  return 0;
}
