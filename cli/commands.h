// SPDX-License-Identifier: BSD-3-Clause
// The commands of pmirror. Each Add... declares one with its options; when it was chosen, its callback sets
// `exit_code` (outcome.h).
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace pmirror::cli {

// `words`: what stood after "--" on the command line.
void AddRun(CLI::App& app, const std::vector<std::string>& words, int& exit_code);
void AddStatus(CLI::App& app, int& exit_code);
void AddPing(CLI::App& app, int& exit_code);
void AddVerify(CLI::App& app, int& exit_code);
void AddEvents(CLI::App& app, int& exit_code);
void AddResync(CLI::App& app, int& exit_code);
void AddVolume(CLI::App& app, int& exit_code);
void AddReplica(CLI::App& app, int& exit_code);
void AddSettle(CLI::App& app, int& exit_code);
void AddSandbox(CLI::App& app, int& exit_code);

}  // namespace pmirror::cli
