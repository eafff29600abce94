// SPDX-License-Identifier: BSD-3-Clause
// See sigbus.h. The program's disposition is a plain struct under a spin lock that only threads with all
// signals blocked may hold; the handler, which no holder can be interrupted by (a fault of our own does not
// happen inside), may wait for it.
#include "interpose/sigbus.h"

#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "interpose/guarded_memory.h"
#include "interpose/log.h"
#include "interpose/next_call.h"
#include "interpose/signal_lock.h"

namespace pmirror::interpose {
namespace {

constexpr int kTakenOver = SA_ONSTACK | SA_RESTART | SA_NODEFER;

constinit FutexMutex g_lock;
constinit struct sigaction g_program {};  // the program's disposition, guarded by g_lock
constinit std::atomic<bool> g_installed{false};

int RealSigaction(const struct sigaction* action, struct sigaction* old) {
  return Next(Call::k_sigaction, &::sigaction)(SIGBUS, action, old);
}

bool IsHandler(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 ||
         (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN);
}

void Handle(int signal, siginfo_t* info, void* context);

// What the kernel is given for a disposition of the program's.
struct sigaction Installed(const struct sigaction& program) {
  struct sigaction action {};
  action.sa_sigaction = Handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigemptyset(&action.sa_mask);
  if (IsHandler(program)) {
    action.sa_flags = SA_SIGINFO | (program.sa_flags & kTakenOver);
    action.sa_mask = program.sa_mask;
  }
  return action;
}

// The default action: for a fault by letting it happen again, for a signal that was sent by sending it again.
void Die(siginfo_t* info) {
  struct sigaction fallback {};
  fallback.sa_handler = SIG_DFL;
  RealSigaction(&fallback, nullptr);
  if (info->si_code <= 0) {
    ::syscall(SYS_rt_tgsigqueueinfo, ::getpid(), static_cast<pid_t>(::syscall(SYS_gettid)), SIGBUS, info);
  }
}

// The disposition to use for this delivery; SA_RESETHAND takes effect here.
struct sigaction TakeForDelivery() {
  const SignalGuard guard(g_lock);
  const struct sigaction program = g_program;
  if (IsHandler(program) && (program.sa_flags & SA_RESETHAND) != 0) {
    g_program.sa_handler = SIG_DFL;
    g_program.sa_flags &= ~SA_SIGINFO;
  }
  return program;
}

void Handle(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
#ifdef __x86_64__
  auto& instruction = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP];
  if (const uintptr_t fixup = info->si_code > 0 ? FixupFor(static_cast<uintptr_t>(instruction)) : 0;
      fixup != 0) {
    instruction = static_cast<greg_t>(fixup);
    return;
  }
#endif
  const struct sigaction program = TakeForDelivery();
  errno = saved_errno;
  if ((program.sa_flags & SA_SIGINFO) != 0) {
    program.sa_sigaction(signal, info, context);
  } else if (program.sa_handler == SIG_DFL || (program.sa_handler == SIG_IGN && info->si_code > 0)) {
    Die(info);  // a fault cannot be ignored
  } else if (program.sa_handler != SIG_IGN) {
    program.sa_handler(signal);
  }
}

}  // namespace

bool SigbusIsVirtual() { return g_installed.load(std::memory_order_acquire); }

void InstallSigbusHandler() {
  if (SigbusIsVirtual()) {
    return;
  }
  const SignalGuard guard(g_lock);
  if (SigbusIsVirtual() || RealSigaction(nullptr, &g_program) != 0) {
    return;
  }
  const struct sigaction action = Installed(g_program);
  if (RealSigaction(&action, nullptr) == 0) {
    g_installed.store(true, std::memory_order_release);
  }
}

int VirtualSigaction(const struct sigaction* action, struct sigaction* old) {
  // Copied first and last outside the lock: a bad pointer of the program must not fault inside.
  struct sigaction wanted {};
  if (action != nullptr) {
    wanted = *action;
  }
  struct sigaction before {};
  {
    const SignalGuard guard(g_lock);
    before = g_program;
    if (action != nullptr) {
      const struct sigaction installed = Installed(wanted);
      if (RealSigaction(&installed, nullptr) != 0) {
        return -1;
      }
      g_program = wanted;
    }
  }
  if (old != nullptr) {
    *old = before;
  }
  return 0;
}

void PrepareSigbusForExec() {
  const SignalGuard guard(g_lock);
  if (SigbusIsVirtual() && !IsHandler(g_program) && g_program.sa_handler == SIG_IGN) {
    RealSigaction(&g_program, nullptr);
  }
}

void UndoSigbusForExec() {
  const SignalGuard guard(g_lock);
  if (SigbusIsVirtual()) {
    const struct sigaction installed = Installed(g_program);
    RealSigaction(&installed, nullptr);
  }
}

void RaiseSigbus(const void* address) {
  struct sigaction program {};
  {
    const SignalGuard guard(g_lock);
    if (SigbusIsVirtual()) {
      program = g_program;
    } else {
      RealSigaction(nullptr, &program);
    }
  }
  siginfo_t info{};
  info.si_signo = SIGBUS;
  info.si_code = BUS_OBJERR;
  info.si_addr = const_cast<void*>(address);
  KernelSignalMask blocked = 0;
  const KernelSignalMask sigbus = KernelSignalMask{1} << (SIGBUS - 1);
  ::syscall(SYS_rt_sigprocmask, SIG_BLOCK, nullptr, &blocked, sizeof(blocked));
  if (!IsHandler(program) ||
      (blocked & sigbus) != 0) {  // as the kernel does with a fault that is blocked or ignored
    struct sigaction fallback {};
    fallback.sa_handler = SIG_DFL;
    RealSigaction(&fallback, nullptr);
    ::syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, &sigbus, nullptr, sizeof(sigbus));
  }
  ::syscall(SYS_rt_tgsigqueueinfo, ::getpid(), static_cast<pid_t>(::syscall(SYS_gettid)), SIGBUS, &info);
}

}  // namespace pmirror::interpose
