// SPDX-License-Identifier: BSD-3-Clause
// `pmirror status`.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>

#include "cli/commands.h"
#include "cli/outcome.h"
#include "cli/status_report.h"
#include "cli/target.h"
#include "proto/control_client.h"

namespace pmirror::cli {
namespace {

constexpr std::chrono::seconds kTimeout{5};

int Report(const TargetOptions& options, bool json) {
  const absl::StatusOr<Target> target = Target::Resolve(options);
  if (!target.ok()) {
    return Fail(target.status());
  }
  std::vector<control::StatusReply> replies;
  std::vector<Unreachable> unreachable;
  for (const Endpoint& endpoint : target->All()) {
    absl::StatusOr<control::StatusReply> reply =
        proto::ControlClient({endpoint.control}).Status({}, kTimeout);
    if (reply.ok()) {
      replies.push_back(*std::move(reply));
    } else {
      unreachable.push_back({endpoint.node, std::string(Sentence(reply.status()))});
    }
  }
  for (const Unreachable& node : unreachable) {
    Note(fmt::format("{} cannot be asked: {}", node.node.empty() ? "the daemon of this host" : node.node,
                     node.reason));
  }
  if (replies.empty()) {
    return Fail("no daemon could be asked; is pmirrord running?");
  }
  // Names of files need not be UTF-8, and JSON must be.
  fmt::print("{}", json ? StatusJson(replies, unreachable)
                                  .dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) +
                              "\n"
                        : StatusTable(replies));
  return kDone;
}

}  // namespace

void AddStatus(CLI::App& app, int& exit_code) {
  struct Options {
    TargetOptions target;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* status = app.add_subcommand("status", "The state of the volumes and their replicas");
  options->target.AddTo(*status);
  status->add_flag("--json", options->json, "Print JSON");
  status->callback([options, &exit_code] { exit_code = Report(options->target, options->json); });
}

}  // namespace pmirror::cli
