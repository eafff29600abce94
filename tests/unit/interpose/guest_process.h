// SPDX-License-Identifier: BSD-3-Clause
// Runs the guest program (guest/) under the preload library, with a conversation over its standard input and
// output.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "replication/unique_fd.h"

namespace pmirror::interpose {

class GuestProcess {
 public:
  // `environment` ("NAME=value") is added to the test's own.
  GuestProcess(const std::string& command, const std::string& file,
               const std::vector<std::string>& environment);
  ~GuestProcess();

  pid_t pid() const { return pid_; }
  // Waits for a line that the guest tells; fails the test when another one or the end comes.
  void Expect(const std::string& line);
  // Lets a guest that waits for the test go on.
  void Continue();
  // Waits for its end. The wait status, as waitpid gives it.
  int Wait();
  // What it wrote to standard error. Requires: Wait() has returned.
  const std::string& complaints() const { return complaints_; }

 private:
  pid_t pid_ = -1;
  UniqueFd to_guest_;
  UniqueFd from_guest_;
  UniqueFd errors_;  // an unlinked file
  std::string complaints_;
};

}  // namespace pmirror::interpose
