// SPDX-License-Identifier: BSD-3-Clause
// `pmirror replica add|remove|replace`.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>

#include "cli/commands.h"
#include "cli/outcome.h"
#include "cli/places.h"
#include "cli/resync.h"
#include "cli/target.h"
#include "cli/wait.h"
#include "proto/control_client.h"

namespace pmirror::cli {
namespace {

constexpr std::chrono::minutes kChangeTimeout{2};  // of what other nodes are asked for
constexpr std::chrono::seconds kCallTimeout{10};
constexpr std::chrono::minutes kLeaveTimeout{2};

struct ReplicaOptions {
  TargetOptions target;
  std::string volume, add, remove;
  std::string backing, mount;
  bool force = false;
  bool no_wait = false;
};

bool HasReplica(proto::ControlClient& client, const std::string& volume, const std::string& node) {
  const absl::StatusOr<control::StatusReply> status = client.Status({}, kCallTimeout);
  if (!status.ok()) {
    return true;
  }
  for (const control::VolumeStatus& one : status->volumes()) {
    for (const control::ReplicaStatus& replica : one.replicas()) {
      if (one.name() == volume && replica.node() == node) {
        return true;
      }
    }
  }
  return false;
}

absl::Status Change(const ReplicaOptions& options, std::string& note) {
  const absl::StatusOr<Target> target = Target::Resolve(options.target);
  const absl::StatusOr<Endpoint> primary =
      target.ok() ? target->PrimaryOf(options.volume) : absl::StatusOr<Endpoint>(target.status());
  if (!primary.ok()) {
    return primary.status();
  }
  control::ChangeMembersRequest request;
  request.set_volume(options.volume);
  request.set_add(options.add);
  request.set_remove(options.remove);
  request.set_force(options.force);
  request.set_backing(options.backing);
  request.set_mount(options.mount);
  if (!options.add.empty() && target->sandbox()) {
    const absl::StatusOr<Places> places =
        PlacesOf(target->sandbox(), *target->sandbox()->Volume(options.volume), options.add, {}, {});
    if (!places.ok()) {
      return places.status();
    }
    request.set_backing(options.backing.empty() ? places->backing : options.backing);
    request.set_mount(options.mount.empty() ? places->mount : options.mount);
  }
  proto::ControlClient client({primary->control});
  const absl::StatusOr<control::ChangeMembersReply> changed = client.ChangeMembers(request, kChangeTimeout);
  if (!changed.ok()) {
    return changed.status();
  }
  note = changed->note();
  if (options.add.empty() || options.no_wait) {
    return absl::OkStatus();
  }
  if (absl::Status status = Resync(*primary, {.volume = options.volume, .node = options.add, .full = false});
      !status.ok()) {
    return status;
  }
  const bool left =
      options.remove.empty() ||
      WaitUntil([&] { return !HasReplica(client, options.volume, options.remove); }, kLeaveTimeout);
  return left ? absl::OkStatus()
              : absl::DeadlineExceededError(
                    fmt::format("{} is in sync, and {} has not left yet; see pmirror events", options.add,
                                options.remove));
}

int Run(const ReplicaOptions& options) {
  std::string note;
  if (absl::Status status = Change(options, note); !status.ok()) {
    return Fail(status);
  }
  if (!note.empty()) {
    Note(note);
  }
  if (!options.add.empty()) {
    fmt::print("{}: {} {}\n", options.volume, options.add,
               options.no_wait ? "is being filled" : "is in sync");
  }
  if (!options.remove.empty() && !options.no_wait) {
    fmt::print("{}: {} has left; its files stay where they are\n", options.volume, options.remove);
  }
  return kDone;
}

CLI::App* AddOne(CLI::App& replica, const char* name, const char* what,
                 const std::shared_ptr<ReplicaOptions>& options, int& exit_code) {
  CLI::App* command = replica.add_subcommand(name, what);
  command->add_option("VOLUME", options->volume, "Name of the volume")->required();
  options->target.AddTo(*command);
  command->callback([options, &exit_code] { exit_code = Run(*options); });
  return command;
}

void AddPlaces(CLI::App& command, const std::shared_ptr<ReplicaOptions>& options) {
  command.add_option("--backing", options->backing,
                     "Directory of the copy there; made when it is missing. Without it, as on the primary");
  command.add_option("--mount", options->mount, "Where it would be mounted there, likewise");
  command.add_flag("--no-wait", options->no_wait,
                   "Return when the copy is being filled, not when it is whole");
}

}  // namespace

void AddReplica(CLI::App& app, int& exit_code) {
  CLI::App* replica =
      app.add_subcommand("replica", "Add, remove and replace copies of a volume while programs use it");
  replica->require_subcommand(1);

  auto added = std::make_shared<ReplicaOptions>();
  CLI::App* add = AddOne(*replica, "add",
                         "Give a node a copy, and wait until it is whole: no sync waits for it before that",
                         added, exit_code);
  add->add_option("NODE", added->add, "Node that is to hold it; it stands in the configuration of the others")
      ->required();
  AddPlaces(*add, added);

  auto removed = std::make_shared<ReplicaOptions>();
  CLI::App* remove = AddOne(
      *replica, "remove", "A node holds its copy no more; its files stay where they are", removed, exit_code);
  remove->add_option("NODE", removed->remove, "Node of the replica")->required();
  remove->add_flag("--force", removed->force, "Also when no other copy is in sync");

  auto replaced = std::make_shared<ReplicaOptions>();
  CLI::App* replace = AddOne(*replica, "replace",
                             "Another node takes a replica's place: it leaves when the new copy is whole",
                             replaced, exit_code);
  replace->add_option("OLD", replaced->remove, "Node that leaves")->required();
  replace->add_option("NEW", replaced->add, "Node that comes")->required();
  AddPlaces(*replace, replaced);
}

}  // namespace pmirror::cli
