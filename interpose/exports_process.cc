// SPDX-License-Identifier: BSD-3-Clause
// exec and _exit: what is dirty is handed to the daemon first; nothing changes for a program whose exec
// fails.
#include <fcntl.h>
#include <unistd.h>

#include <alloca.h>

#include <cerrno>
#include <cstdarg>
#include <cstdlib>

#include "interpose/next_call.h"
#include "interpose/runtime.h"
#include "interpose/sigbus.h"

namespace pmirror::interpose {
namespace {

// Around one exec: the destructor runs only when it failed.
class Leave {
 public:
  Leave() : runtime_(Runtime::Get()) {
    if (runtime_ != nullptr) {
      runtime_->HandOverAll();
      PrepareSigbusForExec();
    }
  }
  ~Leave() {
    if (runtime_ != nullptr) {
      const int saved_errno = errno;
      UndoSigbusForExec();
      runtime_->TakeBack();
      errno = saved_errno;
    }
  }
  Leave(const Leave&) = delete;
  Leave& operator=(const Leave&) = delete;

 private:
  Runtime* runtime_;
};

// How many arguments an execl call has, the first included.
size_t CountArguments(va_list& arguments) {
  size_t count = 1;
  while (va_arg(arguments, char*) != nullptr) {
    ++count;
  }
  return count;
}

void CollectArguments(char** into, size_t count, const char* first, va_list& arguments) {
  into[0] = const_cast<char*>(first);
  for (size_t i = 1; i <= count; ++i) {  // the terminating null included
    into[i] = va_arg(arguments, char*);
  }
}

}  // namespace

// The parameters' names in libc's headers are reserved ones.
// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name)
extern "C" {

int execve(const char* path, char* const arguments[], char* const environment[]) noexcept {
  const Leave leave;
  return Next(Call::k_execve, &::execve)(path, arguments, environment);
}

int execv(const char* path, char* const arguments[]) noexcept {
  const Leave leave;
  return Next(Call::k_execv, &::execv)(path, arguments);
}

int execvp(const char* file, char* const arguments[]) noexcept {
  const Leave leave;
  return Next(Call::k_execvp, &::execvp)(file, arguments);
}

int execvpe(const char* file, char* const arguments[], char* const environment[]) noexcept {
  const Leave leave;
  return Next(Call::k_execvpe, &::execvpe)(file, arguments, environment);
}

int fexecve(int fd, char* const arguments[], char* const environment[]) noexcept {
  const Leave leave;
  return Next(Call::k_fexecve, &::fexecve)(fd, arguments, environment);
}

int execveat(int directory, const char* path, char* const arguments[], char* const environment[],
             int flags) noexcept {
  const Leave leave;
  return Next(Call::k_execveat, &::execveat)(directory, path, arguments, environment, flags);
}

int execl(const char* path, const char* first, ...) noexcept {
  va_list list;
  va_start(list, first);
  const size_t count = CountArguments(list);
  va_end(list);
  auto** arguments = static_cast<char**>(alloca((count + 1) * sizeof(char*)));  // as libc: async-signal-safe
  va_start(list, first);
  CollectArguments(arguments, count, first, list);
  va_end(list);
  return ::execv(path, arguments);
}

int execlp(const char* file, const char* first, ...) noexcept {
  va_list list;
  va_start(list, first);
  const size_t count = CountArguments(list);
  va_end(list);
  auto** arguments = static_cast<char**>(alloca((count + 1) * sizeof(char*)));
  va_start(list, first);
  CollectArguments(arguments, count, first, list);
  va_end(list);
  return ::execvp(file, arguments);
}

int execle(const char* path, const char* first, ...) noexcept {
  va_list list;
  va_start(list, first);
  const size_t count = CountArguments(list);
  va_end(list);
  auto** arguments = static_cast<char**>(alloca((count + 1) * sizeof(char*)));
  va_start(list, first);
  CollectArguments(arguments, count, first, list);
  char* const* environment = va_arg(list, char* const*);
  va_end(list);
  return ::execve(path, arguments, environment);
}

pid_t _Fork() noexcept {
  Runtime* runtime = Runtime::Get();
  if (runtime == nullptr) {
    return Next(Call::k__Fork, &::_Fork)();
  }
  runtime->BeforeFork();
  const pid_t child = Next(Call::k__Fork, &::_Fork)();
  if (child == 0) {
    static_cast<void>(Runtime::Get());  // it notices
  } else {
    runtime->AfterForkInParent();
  }
  return child;
}

void _exit(int status) {
  if (Runtime* runtime = Runtime::Get(); runtime != nullptr) {
    runtime->HandOverAll();
  }
  Next(Call::k__exit, &::_exit)(status);
  __builtin_unreachable();
}

void _Exit(int status) noexcept { ::_exit(status); }
}
// NOLINTEND(readability-inconsistent-declaration-parameter-name)

}  // namespace pmirror::interpose
