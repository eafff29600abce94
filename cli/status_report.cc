// SPDX-License-Identifier: BSD-3-Clause
// Merging answers, and their two forms.
#include "cli/status_report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <map>
#include <set>

namespace pmirror::cli {
namespace {

using Json = nlohmann::ordered_json;

// Seconds since 1970.
double Seconds(int64_t time_us) { return static_cast<double>(time_us) / 1e6; }

Json CheckJson(const control::CheckStatus& check) {
  Json json = {{"rounds", check.rounds()},
               {"round_bytes", check.round_bytes()},
               {"round_done", check.round_done()},
               {"bytes_compared", check.bytes_compared()},
               {"busy_bytes", check.busy_bytes()},
               {"time", check.time_us() == 0 ? Json(nullptr) : Json(Seconds(check.time_us()))},
               {"differences", check.differences()}};
  if (check.has_first()) {
    json["first"] = {{"path", check.first().path()},
                     {"what", check.first().what()},
                     {"offset", check.first().offset()},
                     {"length", check.first().length()}};
  }
  return json;
}

Json VerifyJson(const control::VerifyStatus& verify) {
  return {{"time", Seconds(verify.time_us())},
          {"equal", verify.differences() == 0},
          {"bytes", verify.bytes()},
          {"differences", verify.differences()},
          {"busy", verify.busy()}};
}

std::string TimeText(int64_t time_us) {
  return fmt::format("{:%Y-%m-%d %H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(time_us / 1'000'000)));
}

// What comparisons of the copy have said; empty when there was none.
std::string ComparisonLines(const control::ReplicaStatus& replica) {
  std::string lines;
  if (replica.has_check() && replica.check().time_us() != 0) {
    const control::CheckStatus& check = replica.check();
    lines += fmt::format("  {:<12} checked in the background until {}: {} bytes, {} places differ\n", "",
                         TimeText(check.time_us()), check.bytes_compared(), check.differences());
    if (check.has_first()) {
      lines += fmt::format("  {:<12} /{}: {} {}+{}; list all with pmirror verify\n", "", check.first().path(),
                           check.first().what(), check.first().offset(), check.first().length());
    }
  }
  if (replica.has_verify()) {
    lines += fmt::format("  {:<12} verified at {}: {}\n", "", TimeText(replica.verify().time_us()),
                         replica.verify().differences() == 0
                             ? "equal"
                             : fmt::format("{} differences", replica.verify().differences()));
  }
  return lines;
}

Json ReplicaJson(const control::ReplicaStatus& replica) {
  Json json = {{"node", replica.node()},
               {"state", replica.state()},
               {"dirty_bytes", replica.dirty_bytes()},
               {"durable_seq", replica.durable_seq()},
               {"placement", replica.placement()},
               {"reason", replica.reason()},
               {"reconnects", replica.reconnects()},
               {"sender_full", replica.sender_full()},
               {"peer_congested", replica.peer_congested()},
               {"recaptures", replica.recaptures()}};
  if (replica.has_trail()) {
    const control::TrailStatus& trail = replica.trail();
    json["trail"] = {{"rpo", trail.rpo()},
                     {"lag_ns", trail.lag_ns()},
                     {"lag_bytes", trail.lag_bytes()},
                     {"lag_syncs", trail.lag_syncs()},
                     {"breach_ns", trail.breach_ns()},
                     {"point_age_ns", trail.point_age_ns()},
                     {"batches", trail.batches()},
                     {"batch_bytes", trail.batch_bytes()},
                     {"captured_bytes", trail.captured_bytes()}};
  }
  json["check"] = replica.has_check() ? CheckJson(replica.check()) : Json(nullptr);
  json["verify"] = replica.has_verify() ? VerifyJson(replica.verify()) : Json(nullptr);
  return json;
}

Json VolumeJson(const control::VolumeStatus& volume) {
  Json replicas = Json::array();
  for (const control::ReplicaStatus& replica : volume.replicas()) {
    replicas.push_back(ReplicaJson(replica));
  }
  return {{"name", volume.name()},
          {"epoch", volume.epoch()},
          {"primary", volume.primary()},
          {"rpo", volume.rpo()},
          {"replicas", replicas},
          {"role", volume.role()},
          {"mount", volume.mount()},
          {"on_loss", volume.on_loss()},
          {"set_version", volume.set_version()},
          {"suspended_syncs", volume.suspended_syncs()},
          {"mapped_processes", volume.mapped_processes()}};
}

std::vector<std::string> Warnings(const std::vector<control::StatusReply>& replies) {
  std::vector<std::string> warnings;
  for (const control::StatusReply& reply : replies) {
    warnings.insert(warnings.end(), reply.warnings().begin(), reply.warnings().end());
  }
  return warnings;
}

}  // namespace

std::vector<control::VolumeStatus> Merge(const std::vector<control::StatusReply>& replies) {
  std::map<std::string, control::VolumeStatus> merged;
  for (const control::StatusReply& reply : replies) {
    for (const control::VolumeStatus& status : reply.volumes()) {
      const auto [entry, first] = merged.emplace(status.name(), status);
      if (first || entry->second.role() == "primary") {
        continue;
      }
      if (status.role() == "primary") {
        entry->second = status;
      } else {
        entry->second.mutable_replicas()->MergeFrom(status.replicas());
        entry->second.set_epoch(std::max(entry->second.epoch(), status.epoch()));
      }
    }
  }
  std::vector<control::VolumeStatus> volumes;
  for (auto& [name, status] : merged) {
    volumes.push_back(std::move(status));
  }
  return volumes;
}

nlohmann::ordered_json StatusJson(const std::vector<control::StatusReply>& replies,
                                  const std::vector<Unreachable>& unreachable) {
  Json json;
  json["volumes"] = Json::array();
  for (const control::VolumeStatus& volume : Merge(replies)) {
    json["volumes"].push_back(VolumeJson(volume));
  }
  json["warnings"] = Warnings(replies);
  json["unreachable"] = Json::array();
  for (const Unreachable& node : unreachable) {
    json["unreachable"].push_back({{"node", node.node}, {"reason", node.reason}});
  }
  return json;
}

std::string StatusTable(const std::vector<control::StatusReply>& replies) {
  std::string table;
  for (const control::VolumeStatus& volume : Merge(replies)) {
    table += fmt::format("{}  primary {}  epoch {}  rpo {}  on loss {}\n", volume.name(), volume.primary(),
                         volume.epoch(), volume.rpo(), volume.on_loss());
    if (volume.role() != "primary") {
      table += "  the primary did not answer; this is what the replicas know\n";
    }
    if (volume.suspended_syncs() > 0) {
      table += fmt::format("  {} syncs wait for a replica\n", volume.suspended_syncs());
    }
    table += fmt::format("  {:<12} {:<13} {:>12} {:>12}  {:<9} {}\n", "REPLICA", "STATE", "DIRTY BYTES",
                         "DURABLE SEQ", "PLACEMENT", "REASON");
    for (const control::ReplicaStatus& replica : volume.replicas()) {
      table +=
          fmt::format("  {:<12} {:<13} {:>12} {:>12}  {:<9} {}\n", replica.node(), replica.state(),
                      replica.dirty_bytes(), replica.durable_seq(), replica.placement(), replica.reason());
      if (replica.has_trail()) {
        const control::TrailStatus& trail = replica.trail();
        table += fmt::format("  {:<12} rpo {}  lag {} ms, {} bytes, {} syncs  beyond it for {} ms\n", "",
                             trail.rpo(), trail.lag_ns() / 1'000'000, trail.lag_bytes(), trail.lag_syncs(),
                             trail.breach_ns() / 1'000'000);
      }
      table += ComparisonLines(replica);
    }
  }
  for (const std::string& warning : Warnings(replies)) {
    table += fmt::format("warning: {}\n", warning);
  }
  return table;
}

}  // namespace pmirror::cli
