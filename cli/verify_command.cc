// SPDX-License-Identifier: BSD-3-Clause
// `pmirror verify`.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/outcome.h"
#include "cli/resync.h"
#include "cli/target.h"
#include "proto/control_client.h"

namespace pmirror::cli {
namespace {

constexpr std::chrono::hours kTimeout{24};  // a volume may be large; the person can interrupt

struct VerifyOptions {
  TargetOptions target;
  std::string volume;
  std::string repair;  // node; empty: none
  bool json = false;
};

// Names need not be UTF-8, and JSON must be.
nlohmann::ordered_json ToJson(const google::protobuf::RepeatedPtrField<control::Difference>& differences) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const control::Difference& difference : differences) {
    list.push_back({{"replica", difference.replica()},
                    {"path", difference.path()},
                    {"what", difference.what()},
                    {"offset", difference.offset()},
                    {"length", difference.length()}});
  }
  return list;
}

std::string ToLine(const control::Difference& difference) {
  const std::string range =
      difference.what() == "data" ? fmt::format(" {}+{}", difference.offset(), difference.length()) : "";
  return fmt::format("{}: /{}: {}{}", difference.replica(), difference.path(), difference.what(), range);
}

void ShowProgress(const control::VerifyProgress& progress) {
  if (progress.finished()) {
    fmt::print(stderr, "\r\x1b[K");
    return;
  }
  const double share = progress.total() == 0 ? 0
                                             : 100.0 * static_cast<double>(progress.done()) /
                                                   static_cast<double>(progress.total());
  fmt::print(stderr, "\r\x1b[K{}: {} {:.0f} %", progress.replica(), progress.phase(), share);
}

int Judge(const VerifyOptions& options, const control::VerifyProgress& verdict) {
  const bool equal = verdict.differences_size() == 0;
  if (options.json) {
    const nlohmann::ordered_json json = {{"volume", options.volume},
                                         {"equal", equal},
                                         {"bytes", verdict.total()},
                                         {"differences", ToJson(verdict.differences())},
                                         {"busy", ToJson(verdict.busy())}};
    fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  } else if (equal) {
    fmt::print("{}: equal ({} bytes compared)\n", options.volume, verdict.total());
  }
  for (const control::Difference& difference : verdict.differences()) {
    fmt::print(stderr, "{}\n", ToLine(difference));
  }
  if (verdict.busy_size() > 0) {
    Note(fmt::format(
        "programs stored to {} ranges at every attempt, so that these could not be compared: the first is {}",
        verdict.busy_size(), ToLine(verdict.busy(0))));
  }
  return equal ? kDone
               : Fail(fmt::format("the copies of {} differ in {} places", options.volume,
                                  verdict.differences_size()));
}

int Verify(const VerifyOptions& options) {
  const absl::StatusOr<Target> target = Target::Resolve(options.target);
  if (!target.ok()) {
    return Fail(target.status());
  }
  const absl::StatusOr<Endpoint> endpoint = target->PrimaryOf(options.volume);
  if (!endpoint.ok()) {
    return Fail(endpoint.status());
  }
  if (!options.repair.empty()) {
    if (absl::Status status =
            Resync(*endpoint, {.volume = options.volume, .node = options.repair, .full = true});
        !status.ok()) {
      return Fail(status);
    }
  }
  control::VerifyRequest request;
  request.set_volume(options.volume);
  control::VerifyProgress verdict;
  const bool show = ::isatty(STDERR_FILENO) != 0;
  const absl::Status status = proto::ControlClient({endpoint->control})
                                  .Verify(request, kTimeout, [&](const control::VerifyProgress& progress) {
                                    if (show) {
                                      ShowProgress(progress);
                                    }
                                    verdict = progress;
                                    return true;
                                  });
  if (!status.ok()) {
    return Fail(status);
  }
  if (!verdict.finished()) {
    return Fail(fmt::format("the daemon gave no verdict on {}", options.volume));
  }
  return Judge(options, verdict);
}

}  // namespace

void AddVerify(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<VerifyOptions>();
  CLI::App* verify =
      app.add_subcommand("verify",
                         "Compare the copies of a volume: names, attributes and data, at a frozen point.\n"
                         "Exit 0 when they are equal, 1 with a list of differences when not");
  verify->add_option("VOLUME", options->volume, "Name of the volume")->required();
  options->target.AddTo(*verify);
  verify->add_option("--repair", options->repair,
                     "First make the copy on this node equal to the primary's: a full resync");
  verify->add_flag("--json", options->json, "Print JSON");
  verify->callback([options, &exit_code] { exit_code = Verify(*options); });
}

}  // namespace pmirror::cli
