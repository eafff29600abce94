// SPDX-License-Identifier: BSD-3-Clause
// `pmirror run`: a program under the preload library.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>

#include "cli/commands.h"
#include "cli/outcome.h"
#include "cli/process.h"
#include "cli/target.h"

namespace pmirror::cli {
namespace {

struct RunOptions {
  TargetOptions target;
  std::string volume;
  std::string node;
  unsigned wait_seconds = 0;
};

// The library beside the binary's directory: build/bin and build/lib, /usr/bin and /usr/lib.
absl::StatusOr<std::string> PreloadLibrary() {
  const absl::StatusOr<std::filesystem::path> binaries = BinaryDirectory();
  if (!binaries.ok()) {
    return binaries.status();
  }
  const std::filesystem::path library = binaries->parent_path() / "lib" / "libpmirror_preload.so";
  if (!std::filesystem::exists(library)) {
    return absl::NotFoundError(fmt::format("the preload library is not at {}", library.string()));
  }
  return library.string();
}

// The node of the sandbox that the program shall run on.
absl::StatusOr<const SandboxNode*> ChooseNode(const Target& target, const RunOptions& options) {
  const Sandbox& sandbox = *target.sandbox();
  std::string name = options.node;
  if (name.empty()) {
    const absl::StatusOr<Endpoint> primary = target.PrimaryOf(options.volume.empty() ? "v0" : options.volume);
    if (!primary.ok()) {
      return primary.status();
    }
    name = primary->node;
  }
  const SandboxNode* node = sandbox.Node(name);
  if (node == nullptr) {
    return absl::NotFoundError(fmt::format("there is no node '{}' in the sandbox", name));
  }
  if (!IsRunning(node->pid)) {
    return absl::FailedPreconditionError(
        fmt::format("{} is not running; start it: pmirror sandbox start {} {}", name,
                    sandbox.options.directory.string(), name));
  }
  return node;
}

absl::Status Enter(const Target& target, const RunOptions& options) {
  if (!target.sandbox()) {
    ::setenv("PMIRROR_SOCKET", target.local_socket().c_str(), 1);
    return absl::OkStatus();
  }
  const absl::StatusOr<const SandboxNode*> node = ChooseNode(target, options);
  if (!node.ok()) {
    return node.status();
  }
  ::setenv("PMIRROR_SOCKET", (*node)->Socket().c_str(), 1);
  const std::string marker = target.sandbox()->Marker(**node);
  const size_t equals = marker.find('=');
  ::setenv(marker.substr(0, equals).c_str(), marker.c_str() + equals + 1, 1);
  return (*node)->netns.empty() ? absl::OkStatus() : EnterNetworkNamespace((*node)->netns);
}

int Run(const RunOptions& options, const std::vector<std::string>& words) {
  const absl::StatusOr<std::string> library = PreloadLibrary();
  if (!library.ok()) {
    return Fail(library.status());
  }
  const absl::StatusOr<Target> target = Target::Resolve(options.target);
  if (!target.ok()) {
    return Fail(target.status());
  }
  if (absl::Status status = Enter(*target, options); !status.ok()) {
    return Fail(status);
  }
  const char* others = std::getenv("LD_PRELOAD");
  const std::string preload =
      others != nullptr && *others != '\0' ? fmt::format("{}:{}", *library, others) : *library;
  ::setenv("LD_PRELOAD", preload.c_str(), 1);
  ::setenv("PMIRROR_REQUIRED", "1", 1);
  if (options.wait_seconds != 0) {
    ::setenv("PMIRROR_WAIT_MS", fmt::format("{}000", options.wait_seconds).c_str(), 1);
  }
  std::vector<char*> arguments;
  for (const std::string& word : words) {
    arguments.push_back(const_cast<char*>(word.c_str()));
  }
  arguments.push_back(nullptr);
  ::execvp(arguments[0], arguments.data());
  return Fail(fmt::format("cannot run {}: {}", words[0], std::strerror(errno)));
}

}  // namespace

void AddRun(CLI::App& app, const std::vector<std::string>& words, int& exit_code) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* run =
      app.add_subcommand("run",
                         "Run a program under the preload library: pmirror run [OPTIONS] -- COMMAND ...\n"
                         "Ends as the program ends");
  options->target.AddTo(*run);
  run->add_option("--volume", options->volume, "Run on the primary of this volume; the default is v0");
  run->add_option("--node", options->node, "Run on this node of the sandbox instead");
  run->add_flag("--wait{60}", options->wait_seconds,
                "Where another program that does not run under the library has a file open, let mmap wait "
                "until it has closed it,\n"
                "60 seconds or --wait=SECONDS, instead of failing with EBUSY at once");
  run->callback([options, &words, &exit_code] {
    if (words.empty()) {
      throw CLI::ValidationError("run", "a command is needed after --");
    }
    exit_code = Run(*options, words);
  });
}

}  // namespace pmirror::cli
