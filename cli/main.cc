// SPDX-License-Identifier: BSD-3-Clause
// The command line tool `pmirror`.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/outcome.h"

int main(int argc, char** argv) {
  using pmirror::cli::kWrongUsage;

  // What follows "--" belongs to the program of `pmirror run` and is not ours to read.
  std::vector<std::string> own(argv + 1, argv + argc);
  const auto separator = std::find(own.begin(), own.end(), "--");
  const std::vector<std::string> words(separator == own.end() ? own.end() : separator + 1, own.end());
  own.erase(separator, own.end());
  if (words.empty()) {  // the program of `pmirror run` inherits nothing that it does not need
    ::setenv("GRPC_VERBOSITY", "NONE", 0);  // gRPC's errors come back as statuses, in a sentence
  }

  CLI::App app(
      "Makes the files of memory-mapped programs highly available.\n"
      "Exit: 0 done, 1 refused or failed, 2 wrong usage. Errors go to standard error.",
      "pmirror");
  app.set_version_flag("--version", PMIRROR_VERSION);
  app.require_subcommand(1);
  int exit_code = pmirror::cli::kDone;
  pmirror::cli::AddRun(app, words, exit_code);
  pmirror::cli::AddStatus(app, exit_code);
  pmirror::cli::AddPing(app, exit_code);
  pmirror::cli::AddVerify(app, exit_code);
  pmirror::cli::AddEvents(app, exit_code);
  pmirror::cli::AddResync(app, exit_code);
  pmirror::cli::AddVolume(app, exit_code);
  pmirror::cli::AddReplica(app, exit_code);
  pmirror::cli::AddSettle(app, exit_code);
  pmirror::cli::AddSandbox(app, exit_code);
  std::reverse(own.begin(), own.end());  // CLI11 takes them from the back
  try {
    app.parse(own);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? pmirror::cli::kDone : kWrongUsage;
  }
  return exit_code;
}
