/* SPDX-License-Identifier: BSD-3-Clause */
/* SIGBUS dispositions, faults, and syncs in signal handlers. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include "tests/unit/interpose/guest/guest.h"

static sigjmp_buf jump;
static volatile sig_atomic_t seen_code;
static void* volatile seen_address;
static volatile sig_atomic_t on_alternate_stack;
static char alternate[64 << 10];

static void on_bus(int signal, siginfo_t* info, void* context) {
  (void)signal;
  (void)context;
  char here;
  seen_code = info->si_code;
  seen_address = info->si_addr;
  on_alternate_stack = &here >= alternate && &here < alternate + sizeof alternate;
  siglongjmp(jump, 1);
}

static void old_style(int signal) {
  seen_code = signal;
  siglongjmp(jump, 1);
}

static void install(int flags) {
  struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | flags};
  sigemptyset(&action.sa_mask);
  CHECK(sigaction(SIGBUS, &action, NULL) == 0);
}

/* The program's own handler before the first mapping and after it, and what it can read back. */
static void disposition(const char* file) {
  struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigemptyset(&action.sa_mask);
  sigaddset(&action.sa_mask, SIGUSR1);
  CHECK(sigaction(SIGBUS, &action, NULL) == 0);
  map_file(file, NULL);
  struct sigaction now;
  CHECK(sigaction(SIGBUS, NULL, &now) == 0);
  CHECK(now.sa_sigaction == on_bus &&
        (now.sa_flags & (SA_SIGINFO | SA_NODEFER | SA_ONSTACK | SA_RESTART)) == (SA_SIGINFO | SA_NODEFER));
  CHECK(sigismember(&now.sa_mask, SIGUSR1) == 1 && sigismember(&now.sa_mask, SIGUSR2) == 0);
  CHECK(signal(SIGBUS, SIG_IGN) != SIG_ERR);
  CHECK(signal(SIGBUS, old_style) == SIG_IGN);
  CHECK(sigaction(SIGBUS, NULL, &now) == 0 && now.sa_handler == old_style &&
        (now.sa_flags & SA_RESTART) != 0);
  CHECK(siginterrupt(SIGBUS, 1) == 0);
  CHECK(sigaction(SIGBUS, NULL, &now) == 0 && (now.sa_flags & SA_RESTART) == 0);
  CHECK(sysv_signal(SIGBUS, SIG_DFL) == old_style);
  CHECK(sigset(SIGBUS, SIG_HOLD) == SIG_DFL);
  CHECK(sigset(SIGBUS, old_style) == SIG_HOLD);
  CHECK(sigignore(SIGBUS) == 0);
  CHECK(raise(SIGBUS) == 0); /* ignored */
  CHECK(ssignal(SIGBUS, SIG_DFL) == SIG_IGN);
}

/* A fault past the end of the file reaches the program's handler as ever. */
static void own_fault(const char* file) {
  int fd = open_file(file);
  char* map = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(map != MAP_FAILED);
  CHECK(ftruncate(fd, PAGE) == 0);
  install(0);
  if (sigsetjmp(jump, 1) == 0) {
    map[4 * PAGE] = 'x';
    CHECK(!"the store must fault");
  }
  CHECK(seen_code == BUS_ADRERR && seen_address == map + 4 * PAGE && !on_alternate_stack);
  stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
  CHECK(sigaltstack(&stack, NULL) == 0);
  install(SA_ONSTACK | SA_RESETHAND);
  if (sigsetjmp(jump, 1) == 0) {
    map[5 * PAGE] = 'x';
    CHECK(!"the store must fault");
  }
  CHECK(seen_address == map + 5 * PAGE && on_alternate_stack);
  struct sigaction now;
  CHECK(sigaction(SIGBUS, NULL, &now) == 0 && now.sa_handler == SIG_DFL); /* SA_RESETHAND */
}

static void unhandled_fault(const char* file) {
  int fd = open_file(file);
  char* map = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(ftruncate(fd, PAGE) == 0);
  map[4 * PAGE] = 'x';
}

static void sent_sigbus(const char* file) {
  map_file(file, NULL);
  raise(SIGBUS);
}

/* The file shrinks between the store and the sync: what is left is synced, nothing faults, blocked SIGBUS or
 * not. */
static void truncate_before_sync(const char* file) {
  int fd = open_file(file);
  char* map = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(map != MAP_FAILED);
  sigset_t bus;
  sigemptyset(&bus);
  sigaddset(&bus, SIGBUS);
  for (int round = 0; round < 200; ++round) {
    CHECK(sigprocmask(round % 2 == 0 ? SIG_BLOCK : SIG_UNBLOCK, &bus, NULL) == 0);
    CHECK(ftruncate(fd, 8 * PAGE) == 0);
    memset(map, 'a' + round % 26, 8 * PAGE);
    CHECK(ftruncate(fd, 3 * PAGE + 100) == 0);
    CHECK(msync(map, 8 * PAGE, MS_SYNC) == 0);
  }
}

static char* handler_map;
static int handler_fd;
static volatile sig_atomic_t handler_result = -1;
static void sync_in_handler(int signal) {
  (void)signal;
  int saved = errno; /* NOLINT(bugprone-signal-handler): errno is what a handler has to save */
  handler_map[PAGE] = 'h';
  handler_result = fsync(handler_fd);
  errno = saved;
}

/* Trap 15: the handler interrupts a sync of the same thread that waits for the replica. */
static void fsync_in_handler(const char* file) {
  handler_fd = open_file(file);
  handler_map = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, handler_fd, 0);
  CHECK(handler_map != MAP_FAILED);
  CHECK(signal(SIGUSR1, sync_in_handler) != SIG_ERR);
  handler_map[0] = 'm';
  tell("syncing");
  CHECK(msync(handler_map, 8 * PAGE, MS_SYNC) == 0);
  CHECK(handler_result == 0);
}

const struct command signal_commands[] = {{"disposition", disposition},
                                          {"own_fault", own_fault},
                                          {"unhandled_fault", unhandled_fault},
                                          {"sent_sigbus", sent_sigbus},
                                          {"truncate_before_sync", truncate_before_sync},
                                          {"fsync_in_handler", fsync_in_handler},
                                          {NULL, NULL}};
