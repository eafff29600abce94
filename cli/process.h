// SPDX-License-Identifier: BSD-3-Clause
// Running tools and daemons, and finding and ending processes of a node.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pmirror::cli {

// The directory of this program's own binary.
absl::StatusOr<std::filesystem::path> BinaryDirectory();

// Runs a tool to its end with `input` as its standard input and answers its standard output. Fails with the
// tool's standard error when it ends with another status than 0. `words[0]` is looked up in PATH.
absl::StatusOr<std::string> RunTool(const std::vector<std::string>& words, const std::string& input = "");

struct DaemonToStart {
  std::vector<std::string> words;        // words[0] is a path
  std::filesystem::path log;             // appended to: standard output and error
  std::string network_namespace;         // name below /run/netns; empty: ours
  std::vector<std::string> environment;  // "NAME=value", added to ours
};
// Starts a process in a session of its own that holds none of our descriptors. It is our child; nobody needs
// to wait for it.
absl::StatusOr<pid_t> StartDaemon(const DaemonToStart& daemon);

// Enters a network namespace, with the calling thread (and what it starts).
absl::Status EnterNetworkNamespace(const std::string& name);

// True while the process runs; false for one that is a zombie or gone.
bool IsRunning(pid_t pid);

// Processes that have `marker` ("NAME=value") in the environment they were started with. One that is stuck in
// the kernel and cannot be read is left out after a second.
std::vector<pid_t> ProcessesWithEnvironment(const std::string& marker);
// Processes whose network namespace is that of this name; none when there is no such namespace.
std::vector<pid_t> ProcessesInNamespace(const std::string& name);

// SIGKILLs what `find` answers, and asks again until it answers nothing: a process may start another
// meanwhile. Never kills this process. Fails with their pids when some do not end.
absl::Status KillAll(const std::function<std::vector<pid_t>()>& find);

}  // namespace pmirror::cli
