// SPDX-License-Identifier: BSD-3-Clause
// `pmirror volume create|adopt`.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/outcome.h"
#include "cli/places.h"
#include "cli/sandbox_files.h"
#include "cli/target.h"
#include "cli/volume_section.h"
#include "proto/control_client.h"

namespace pmirror::cli {
namespace {

constexpr std::chrono::minutes kCreateTimeout{3};  // of a mount, and of what other nodes are asked for
constexpr std::chrono::seconds kCallTimeout{10};

struct VolumeOptions {
  TargetOptions target;
  VolumeSection section;
  std::vector<std::string> backing;
  std::vector<std::string> mount;
  bool adopt = false;
};

// The daemon of the node that is to be the primary, and what it is called.
absl::StatusOr<Endpoint> PrimaryToBe(const Target& target, const std::string& wanted) {
  if (target.sandbox()) {
    const std::string name = wanted.empty() ? target.sandbox()->nodes.front().name : wanted;
    const SandboxNode* const node = target.sandbox()->Node(name);
    return node == nullptr ? absl::StatusOr<Endpoint>(
                                 absl::NotFoundError(fmt::format("the sandbox has no node '{}'", name)))
                           : Endpoint{name, node->Control()};
  }
  Endpoint local = target.All().front();
  const absl::StatusOr<control::StatusReply> status =
      proto::ControlClient({local.control}).Status({}, kCallTimeout);
  if (!status.ok()) {
    return status.status();
  }
  local.node = status->node();
  if (!wanted.empty() && wanted != local.node) {
    return absl::FailedPreconditionError(
        fmt::format("this is {}, and the primary is to be {}: run the command there", local.node, wanted));
  }
  return local;
}

absl::Status Create(VolumeOptions options) {
  const absl::StatusOr<Target> target = Target::Resolve(options.target);
  if (!target.ok()) {
    return target.status();
  }
  const absl::StatusOr<Endpoint> primary = PrimaryToBe(*target, options.section.primary);
  if (!primary.ok()) {
    return primary.status();
  }
  VolumeSection& section = options.section;
  section.primary = primary->node;
  section.uuid = NewUuid();
  std::optional<SandboxLock> lock;
  if (target->sandbox()) {
    absl::StatusOr<SandboxLock> taken = SandboxLock::Take(target->sandbox()->options.directory);
    if (!taken.ok()) {
      return taken.status();
    }
    lock.emplace(*std::move(taken));
  }
  if (section.nodes.empty()) {
    section.nodes = {section.primary};
  }
  control::CreateVolumeRequest request;
  request.set_adopt(options.adopt);
  std::vector<std::string> holders = section.nodes;
  holders.insert(holders.end(), section.spares.begin(), section.spares.end());
  for (const std::vector<std::string>& words : {options.backing, options.mount}) {
    if (absl::Status status = CheckPlaces(words, holders); !status.ok()) {
      return status;
    }
  }
  for (const std::string& node : holders) {
    const absl::StatusOr<Places> places =
        PlacesOf(target->sandbox(), {.name = section.name, .uuid = section.uuid, .primary = section.primary},
                 node, options.backing, options.mount);
    if (!places.ok()) {
      return places.status();
    }
    section.backing = places->backing;
    section.mount = places->mount;
    (*request.mutable_sections())[node] = ToToml(section);
  }
  const auto created = proto::ControlClient({primary->control}).CreateVolume(request, kCreateTimeout);
  if (!created.ok() || !target->sandbox()) {
    return created.status();
  }
  absl::StatusOr<Sandbox> sandbox = OpenSandbox(target->sandbox()->options.directory);
  if (!sandbox.ok()) {
    return sandbox.status();
  }
  sandbox->volumes.push_back({section.name, section.uuid, section.primary});
  return SaveState(*sandbox);
}

int Run(const VolumeOptions& options) {
  if (absl::Status status = Create(options); !status.ok()) {
    return Fail(status);
  }
  fmt::print("{}: mounted\n", options.section.name);
  return kDone;
}

void AddOne(CLI::App& volume, const char* name, const char* what, bool adopt, int& exit_code) {
  auto options = std::make_shared<VolumeOptions>();
  options->adopt = adopt;
  VolumeSection& section = options->section;
  CLI::App* command = volume.add_subcommand(name, what);
  command->add_option("NAME", section.name, "Name of the new volume")->required();
  command
      ->add_option(
          "--nodes", section.nodes,
          "Nodes that hold a copy, the primary among them, as in n1,n2; without it, only the primary")
      ->delimiter(',');
  command->add_option("--primary", section.primary,
                      "Where it is mounted; without it, this node, or the first of the sandbox");
  command->add_option("--backing", options->backing,
                      "Directory of the copies, the same on every node or NODE=DIR; may be given again. In a "
                      "sandbox there is a default");
  command->add_option("--mount", options->mount, "Directory where the primary mounts it, likewise");
  command->add_option("--spares", section.spares, "Nodes that stand ready")->delimiter(',');
  command->add_option("--spare-after", section.spare_after,
                      "How long a replica may be gone before a spare takes its place, as in 10m");
  command->add_option("--rpo", section.rpo,
                      "Recovery point objective: 0, a time, a size, or a number of syncs as in 100syncs");
  command->add_option("--on-lag", section.on_lag, "throttle or proceed");
  command->add_option("--on-loss", section.on_loss, "suspend, fail or proceed");
  command->add_option("--deadline", section.deadline,
                      "A cut shorter than this changes no state, as in 500ms");
  command->add_option("--suspend", section.suspend, "How long a suspended sync waits before it fails");
  command->add_option("--check", section.check, "Period of the background check, as in 24h, or off");
  command->add_option("--domain", section.domain, "file, pmem or volatile");
  command->add_option("--credit", section.credit,
                      "How much a sender may have under way to a replica in one session");
  options->target.AddTo(*command);
  command->callback([options, &exit_code] { exit_code = Run(*options); });
}

}  // namespace

void AddVolume(CLI::App& app, int& exit_code) {
  CLI::App* volume = app.add_subcommand("volume", "Make volumes while the daemons run");
  volume->require_subcommand(1);
  AddOne(
      *volume, "create",
      "Make an empty volume, mount it, and fill its copies. The directories are made where they are missing",
      /*adopt=*/false, exit_code);
  AddOne(*volume, "adopt",
         "Make a volume of a directory with files: they stay where they are, and the copies are made from "
         "them.\n"
         "Nothing may use the directory itself from then on",
         /*adopt=*/true, exit_code);
}

}  // namespace pmirror::cli
