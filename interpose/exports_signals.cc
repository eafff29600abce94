// SPDX-License-Identifier: BSD-3-Clause
// The calls that set or read a signal's disposition. Only SIGBUS is ours to virtualise, and only once our
// handler is installed; everything else is libc's.
#include <cerrno>
#include <csignal>

#include "interpose/next_call.h"
#include "interpose/sigbus.h"

namespace pmirror::interpose {
namespace {

bool IsOurs(int signal) { return signal == SIGBUS && SigbusIsVirtual(); }

// signal(3) with the given flags; the handler's own signal is masked unless SA_NODEFER.
sighandler_t SetHandler(sighandler_t handler, int flags) {
  struct sigaction action {};
  struct sigaction old {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  if ((flags & SA_NODEFER) == 0) {
    sigaddset(&action.sa_mask, SIGBUS);
  }
  if (handler == SIG_ERR) {
    errno = EINVAL;
    return SIG_ERR;
  }
  return VirtualSigaction(&action, &old) == 0 ? old.sa_handler : SIG_ERR;
}

constexpr int kSystemV = SA_RESETHAND | SA_NODEFER;

// sigset(3)
sighandler_t SetAndUnblock(sighandler_t handler) {
  sigset_t bus;
  sigset_t before;
  sigemptyset(&bus);
  sigaddset(&bus, SIGBUS);
  if (pthread_sigmask(handler == SIG_HOLD ? SIG_BLOCK : SIG_UNBLOCK, &bus, &before) != 0) {
    return SIG_ERR;
  }
  struct sigaction old {};
  if (handler == SIG_HOLD) {
    if (VirtualSigaction(nullptr, &old) != 0) {
      return SIG_ERR;
    }
  } else {
    struct sigaction action {};
    action.sa_handler = handler;
    sigemptyset(&action.sa_mask);
    if (VirtualSigaction(&action, &old) != 0) {
      return SIG_ERR;
    }
  }
  return sigismember(&before, SIGBUS) == 1 ? SIG_HOLD : old.sa_handler;
}

}  // namespace

// The parameters' names in libc's headers are reserved ones.
// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name)
extern "C" {

int sigaction(int signal, const struct sigaction* action, struct sigaction* old) noexcept {
  return IsOurs(signal) ? VirtualSigaction(action, old)
                        : Next(Call::k_sigaction, &::sigaction)(signal, action, old);
}

sighandler_t signal(int number, sighandler_t handler) noexcept {
  return IsOurs(number) ? SetHandler(handler, SA_RESTART) : Next(Call::k_signal, &::signal)(number, handler);
}

sighandler_t bsd_signal(int number, sighandler_t handler) noexcept { return ::signal(number, handler); }

sighandler_t ssignal(int number, sighandler_t handler) noexcept { return ::signal(number, handler); }

sighandler_t sysv_signal(int number, sighandler_t handler) noexcept {
  return IsOurs(number) ? SetHandler(handler, kSystemV)
                        : Next(Call::k_sysv_signal, &::sysv_signal)(number, handler);
}

sighandler_t __sysv_signal(int number, sighandler_t handler) noexcept {
  return IsOurs(number) ? SetHandler(handler, kSystemV)
                        : Next(Call::k___sysv_signal, &::__sysv_signal)(number, handler);
}

sighandler_t sigset(int number, sighandler_t handler) noexcept {
  return IsOurs(number) ? SetAndUnblock(handler) : Next(Call::k_sigset, &::sysv_signal)(number, handler);
}

int sigignore(int number) noexcept {
  if (!IsOurs(number)) {
    return Next(Call::k_sigignore, static_cast<int (*)(int)>(nullptr))(number);
  }
  return SetHandler(SIG_IGN, 0) != SIG_ERR ? 0 : -1;
}

int siginterrupt(int number, int interrupts) noexcept {
  if (!IsOurs(number)) {
    return Next(Call::k_siginterrupt, static_cast<int (*)(int, int)>(nullptr))(number, interrupts);
  }
  struct sigaction action {};
  if (VirtualSigaction(nullptr, &action) != 0) {
    return -1;
  }
  action.sa_flags = interrupts != 0 ? action.sa_flags & ~SA_RESTART : action.sa_flags | SA_RESTART;
  return VirtualSigaction(&action, nullptr);
}
}
// NOLINTEND(readability-inconsistent-declaration-parameter-name)

}  // namespace pmirror::interpose
