// SPDX-License-Identifier: BSD-3-Clause
// See guest_process.h. The paths of the guest and of the library come from the build.
#include "tests/unit/interpose/guest_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

namespace pmirror::interpose {

GuestProcess::GuestProcess(const std::string& command, const std::string& file,
                           const std::vector<std::string>& environment) {
  int in[2];
  int out[2];
  EXPECT_EQ(::pipe2(in, O_CLOEXEC), 0);
  EXPECT_EQ(::pipe2(out, O_CLOEXEC), 0);
  to_guest_.Reset(in[1]);
  from_guest_.Reset(out[0]);
  errors_.Reset(::memfd_create("guest-errors", MFD_CLOEXEC));

  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, errors_.get(), STDERR_FILENO);
  std::vector<std::string> words = {PMIRROR_TEST_GUEST, command, file};
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) {
    arguments.push_back(word.data());
  }
  arguments.push_back(nullptr);
  std::vector<std::string> variables = environment;
  variables.emplace_back("LD_PRELOAD=" PMIRROR_TEST_PRELOAD);
  for (char** variable = environ; *variable != nullptr; ++variable) {
    variables.emplace_back(*variable);
  }
  std::vector<char*> pointers;
  pointers.reserve(variables.size() + 1);
  for (std::string& variable : variables) {
    pointers.push_back(variable.data());
  }
  pointers.push_back(nullptr);
  EXPECT_EQ(::posix_spawn(&pid_, arguments[0], &actions, nullptr, arguments.data(), pointers.data()), 0);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(in[0]);
  ::close(out[1]);
}

GuestProcess::~GuestProcess() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
}

void GuestProcess::Expect(const std::string& line) {
  std::string got;
  char c = 0;
  while (::read(from_guest_.get(), &c, 1) == 1 && c != '\n') {
    got.push_back(c);
  }
  if (got != line) {
    Wait();
  }
  ASSERT_EQ(got, line) << complaints_;
}

void GuestProcess::Continue() { ASSERT_EQ(::write(to_guest_.get(), "\n", 1), 1); }

int GuestProcess::Wait() {
  int status = -1;
  if (pid_ > 0) {
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    char text[4096];
    const ssize_t got = ::pread(errors_.get(), text, sizeof(text), 0);
    complaints_.assign(text, got > 0 ? static_cast<size_t>(got) : 0);
  }
  return status;
}

}  // namespace pmirror::interpose
