// SPDX-License-Identifier: BSD-3-Clause
// `pmirror settle`. The work is pmirrord's, which alone knows what a backing directory holds.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/outcome.h"

namespace pmirror::cli {
namespace {

struct SettleOptions {
  std::string backing;
  std::string state;
};

// Does not return when pmirrord, which lies beside this program, could be started.
int Run(const SettleOptions& options) {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string daemon = (self.parent_path() / "pmirrord").string();
  std::vector<std::string> words = {daemon, "--settle", options.backing};
  if (!options.state.empty()) {
    words.insert(words.end(), {"--state", options.state});
  }
  std::vector<char*> arguments;
  for (std::string& word : words) {
    arguments.push_back(word.data());
  }
  arguments.push_back(nullptr);
  ::execv(daemon.c_str(), arguments.data());
  return Fail(fmt::format("cannot start {}: {}", daemon, std::strerror(errno)));
}

}  // namespace

void AddSettle(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<SettleOptions>();
  CLI::App* settle = app.add_subcommand("settle",
                                        "Make plain files of a backing directory that no daemon serves: when "
                                        "a resync of it was cut, take it back to its last\n"
                                        "consistency point. Exit 0 when its files are whole");
  settle->add_option("BACKING_DIR", options->backing, "The backing directory of a volume on this node")
      ->required();
  settle->add_option(
      "--state", options->state,
      "The record of the copy, state_dir/VOLUME.copy, when it is not where it was at the resync");
  settle->callback([options, &exit_code] { exit_code = Run(*options); });
}

}  // namespace pmirror::cli
