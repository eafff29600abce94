// SPDX-License-Identifier: BSD-3-Clause
// `pmirror resync`.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "cli/outcome.h"
#include "cli/resync.h"
#include "cli/target.h"

namespace pmirror::cli {
namespace {

struct ResyncOptions {
  TargetOptions target;
  ResyncOrder order;
};

int Run(const ResyncOptions& options) {
  const absl::StatusOr<Target> target = Target::Resolve(options.target);
  if (!target.ok()) {
    return Fail(target.status());
  }
  const absl::StatusOr<Endpoint> primary = target->PrimaryOf(options.order.volume);
  if (!primary.ok()) {
    return Fail(primary.status());
  }
  if (absl::Status status = Resync(*primary, options.order); !status.ok()) {
    return Fail(status);
  }
  fmt::print("{}: in sync\n", options.order.volume);
  return kDone;
}

}  // namespace

void AddResync(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ResyncOptions>();
  CLI::App* resync =
      app.add_subcommand("resync",
                         "Bring the copies of a volume to what its primary has, and wait for it. A replica "
                         "that comes back does that by itself;\n"
                         "this tries at once, and shows how far it is. Exit 0 when the copies are in sync");
  resync->add_option("VOLUME", options->order.volume, "Name of the volume")->required();
  resync->add_option("NODE", options->order.node, "The replica's node; without it, every replica");
  resync->add_flag("--full", options->order.full,
                   "Compare the whole tree and every file, also when the copy counts as in sync");
  options->target.AddTo(*resync);
  resync->callback([options, &exit_code] { exit_code = Run(*options); });
}

}  // namespace pmirror::cli
