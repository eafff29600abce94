// SPDX-License-Identifier: BSD-3-Clause
// `pmirror ping`.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/outcome.h"
#include "cli/target.h"
#include "proto/control_client.h"

namespace pmirror::cli {
namespace {

constexpr std::chrono::seconds kTimeout{10};

struct PingOptions {
  TargetOptions target;
  std::string node;
  std::string volume;
  bool json = false;
};

int Ping(const PingOptions& options) {
  const absl::StatusOr<Target> target = Target::Resolve(options.target);
  if (!target.ok()) {
    return Fail(target.status());
  }
  const absl::StatusOr<Endpoint> endpoint = target->PrimaryOf(options.volume.empty() ? "v0" : options.volume);
  if (!endpoint.ok()) {
    return Fail(endpoint.status());
  }
  control::PingRequest request;
  request.set_node(options.node);
  request.set_volume(options.volume);
  const absl::StatusOr<control::PingReply> reply =
      proto::ControlClient({endpoint->control}).Ping(request, kTimeout);
  if (!reply.ok()) {
    return Fail(reply.status());
  }
  if (options.json) {
    const nlohmann::ordered_json json = {{"node", reply->node()},
                                         {"volume", reply->volume()},
                                         {"control_ns", reply->control_ns()},
                                         {"data_ns", reply->data_ns()},
                                         {"durable_ns", reply->durable_ns()}};
    fmt::print("{}\n", json.dump());
    return kDone;
  }
  fmt::print("control  {:>10.1f} us\n", static_cast<double>(reply->control_ns()) / 1e3);
  if (reply->volume().empty()) {
    Note(fmt::format(
        "no volume is primary on this node and has a copy on {}: there is no data path to measure",
        options.node));
    return kDone;
  }
  fmt::print("data     {:>10.1f} us  ({})\ndurable  {:>10.1f} us  ({})\n",
             static_cast<double>(reply->data_ns()) / 1e3, reply->volume(),
             static_cast<double>(reply->durable_ns()) / 1e3, reply->volume());
  return kDone;
}

}  // namespace

void AddPing(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<PingOptions>();
  CLI::App* ping = app.add_subcommand(
      "ping",
      "Round trips to a node: of the control path, of the data path, and until data are durable there");
  ping->add_option("NODE", options->node, "Name of the node")->required();
  options->target.AddTo(*ping);
  ping->add_option("--volume", options->volume, "Measure the data path of this volume");
  ping->add_flag("--json", options->json, "Print JSON");
  ping->callback([options, &exit_code] { exit_code = Ping(*options); });
}

}  // namespace pmirror::cli
