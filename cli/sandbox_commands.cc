// SPDX-License-Identifier: BSD-3-Clause
// `pmirror sandbox`: up, down, kill, start, partition, heal.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>

#include "cli/commands.h"
#include "cli/outcome.h"
#include "cli/sandbox.h"

namespace pmirror::cli {
namespace {

int Finish(const absl::Status& status, bool json) {
  if (!status.ok()) {
    return Fail(status);
  }
  if (json) {
    fmt::print("{{\"ok\": true}}\n");
  }
  return kDone;
}

// What all but `up` have in common.
struct Words {
  std::string directory, a, b;
  bool json = false;
  bool keep = false;
};

CLI::App* AddOne(CLI::App& sandbox, const char* name, const char* what, const std::shared_ptr<Words>& words) {
  CLI::App* command = sandbox.add_subcommand(name, what);
  command->add_option("DIR", words->directory, "Directory of the sandbox")->required();
  command->add_flag("--json", words->json, "Print the outcome as JSON");
  return command;
}

void AddUp(CLI::App& sandbox, int& exit_code) {
  auto options = std::make_shared<SandboxOptions>();
  auto json = std::make_shared<bool>(true);
  CLI::App* up = sandbox.add_subcommand(
      "up",
      "Make a whole cluster on this host, one daemon a node, and wait until its replicas are in sync.\n"
      "Prints JSON: the state of volume v0, and of every volume under \"volumes\".");
  up->add_option("DIR", options->directory, "Where everything of it will be; made when it is not there")
      ->required();
  up->add_option("--nodes", options->nodes, "Nodes n1, n2, ...")
      ->capture_default_str()
      ->check(CLI::Range(1, kMaxSandboxNodes));
  up->add_option("--volumes", options->volumes,
                 "Volumes v0, v1, ...; the primary of v0 is n1, of v1 n2, and so on")
      ->capture_default_str()
      ->check(CLI::Range(1, kMaxSandboxVolumes));
  up->add_flag("--netns", options->netns,
               "A network namespace for each node, joined by two networks with IPv4 and IPv6. Without it the "
               "daemons share the\n"
               "loopback interface, and `partition` cuts their connections; with it, packets are lost "
               "silently as in a real cut");
  up->add_option("--rpo", options->rpo,
                 "Recovery point objective: 0, a time, a size, or a number of syncs as in 100syncs")
      ->capture_default_str();
  up->add_option("--on-lag", options->on_lag,
                 "What a sync does when a replica is older than its RPO: throttle or proceed")
      ->capture_default_str();
  up->add_option("--on-loss", options->on_loss,
                 "What a sync does when a replica is lost: proceed, suspend or fail")
      ->capture_default_str();
  up->add_option("--arbiter", options->arbiter, "Who decides on failover; this version has manual only")
      ->capture_default_str();
  up->add_option("--deadline", options->deadline, "A cut shorter than this changes no state, as in 500ms")
      ->capture_default_str();
  up->add_option("--suspend", options->suspend, "How long a suspended sync waits before it fails")
      ->capture_default_str();
  up->add_option("--domain", options->domain, "Persistence domain of the nodes: volatile, file or pmem")
      ->capture_default_str();
  up->add_option("--check", options->check,
                 "How long the background check may take for all files, as in 24h, or off");
  up->add_option("--credit", options->credit,
                 "How much a sender may have under way to a replica in one session, as in 64KiB");
  up->add_option("--backing-root", options->backing_root,
                 "Put the backing directories below this one (a tmpfs, say) instead of into DIR");
  up->add_flag("--json", *json, "Print JSON: it does so anyway");
  up->callback([options, json, &exit_code] {
    const absl::StatusOr<Sandbox> made = SandboxUp(*options);
    if (!made.ok()) {
      exit_code = Fail(made.status());
      return;
    }
    fmt::print("{}\n", Describe(*made).dump());
    exit_code = kDone;
  });
}

void AddNodeCommand(
    CLI::App& sandbox, const char* name, const char* what, int& exit_code,
    const std::function<absl::Status(const std::string& directory, const std::string& node)>& action) {
  auto words = std::make_shared<Words>();
  CLI::App* command = AddOne(sandbox, name, what, words);
  command->add_option("NODE", words->a, "Name of the node, as in n1")->required();
  command->callback(
      [words, action, &exit_code] { exit_code = Finish(action(words->directory, words->a), words->json); });
}

void AddNetworkCommand(CLI::App& sandbox, const char* name, const char* what, int& exit_code,
                       bool reachable) {
  auto words = std::make_shared<Words>();
  CLI::App* command = AddOne(sandbox, name, what, words);
  command->add_option("A", words->a, "Name of a node")->required();
  command->add_option("B", words->b, "Name of another node")->required();
  command->callback([words, reachable, &exit_code] {
    exit_code = Finish(SandboxSetReachable(words->directory, words->a, words->b, reachable), words->json);
  });
}

}  // namespace

void AddSandbox(CLI::App& app, int& exit_code) {
  CLI::App* sandbox =
      app.add_subcommand("sandbox", "A whole cluster on this host, to try and to test with. Needs root");
  sandbox->require_subcommand(1);
  AddUp(*sandbox, exit_code);
  auto words = std::make_shared<Words>();
  CLI::App* down =
      AddOne(*sandbox, "down",
             "Remove a sandbox: daemons, programs, mounts, namespaces, directories. Idempotent", words);
  down->add_flag("--keep", words->keep,
                 "Leave the nodes' directories: backing directories, logs, configurations");
  down->callback(
      [words, &exit_code] { exit_code = Finish(SandboxDown(words->directory, words->keep), words->json); });
  AddNodeCommand(
      *sandbox, "kill",
      "SIGKILL a node's daemon and what runs on the node: with --netns all in its namespace, otherwise what\n"
      "`pmirror run` started there",
      exit_code, &SandboxKill);
  AddNodeCommand(*sandbox, "start", "Start the daemon of a node that was killed", exit_code, &SandboxStart);
  AddNetworkCommand(*sandbox, "partition",
                    "Cut the network between two nodes. With --netns packets are dropped silently in both "
                    "directions; without,\n"
                    "both daemons cut and refuse their connections, which is a cut and not silence",
                    exit_code, false);
  AddNetworkCommand(*sandbox, "heal", "Mend the network between two nodes", exit_code, true);
}

}  // namespace pmirror::cli
