// SPDX-License-Identifier: BSD-3-Clause
// pmirrord: its arguments, its signals, and a daemon between them. With daemon.h the composition root.
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "server/config.h"
#include "server/daemon.h"
#include "server/event_journal.h"
#include "server/event_log.h"
#include "server/settle.h"
#include "server/volume_store.h"

namespace pmirror::server {
namespace {

constexpr int kDone = 0;
constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

std::string Text(const absl::Status& status) { return std::string(status.message()); }

// Sessions, mappings and inodes each hold descriptors.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    (void)::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

// The signals that end the daemon. Blocked in every thread, and taken by the main thread alone.
sigset_t EndingSignals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) {
    ::sigaddset(&signals, number);
  }
  return signals;
}

int Serve(const Config& config) {
  const auto journal = std::make_shared<EventJournal>(EventJournal::Options{
      .node = config.name, .report = [](LogLevel level, std::string_view event, const Event::Fields& fields) {
        LogEvent(level, event, ToFields(fields));
      }});
  SetUpEventLog(config.log_level, journal);
  ::setenv("GRPC_VERBOSITY", "NONE", 0);  // its own lines are no events; what matters comes back as a status
  ::signal(SIGPIPE, SIG_IGN);
  const sigset_t signals = EndingSignals();
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  RaiseDescriptorLimit();
  LogEvent(LogLevel::kInfo, "starting",
           {{"node", config.name}, {"version", kVersion}, {"config", config.file}});

  Daemon daemon(config, *journal);
  if (absl::Status status = daemon.Start(); !status.ok()) {
    LogEvent(LogLevel::kError, "cannot_start", {{"reason", Text(status)}});
    journal->Close();
    ::sd_notifyf(0, "STATUS=cannot start: %s", Text(status).c_str());
    return kFailed;
  }
  ::sd_notifyf(0, "READY=1\nSTATUS=serving %zu volumes as %s", config.volumes.size(), config.name.c_str());
  LogEvent(LogLevel::kInfo, "ready", {{"node", config.name}, {"volumes", config.volumes.size()}});

  int number = 0;
  ::sigwait(&signals, &number);
  // Further signals stay blocked: nothing shortens the flush but SIGKILL, which loses nothing that was
  // acknowledged.
  ::sd_notify(0, "STOPPING=1\nSTATUS=flushing and unmounting");
  LogEvent(LogLevel::kInfo, "stopping", {{"node", config.name}, {"signal", number}});
  daemon.Stop();
  LogEvent(LogLevel::kInfo, "stopped", {{"node", config.name}});
  journal->Close();
  return kDone;
}

int Main(int argc, char** argv) {
  CLI::App app("The daemon of a pmirror node.\nExit: 0 ended cleanly, 1 refused or failed, 2 wrong usage.",
               "pmirrord");
  app.set_version_flag("--version", kVersion);
  std::string file = "/etc/pmirror/pmirrord.toml";
  app.add_option("--config", file, "Configuration file of this node")->capture_default_str();
  bool check = false;
  app.add_flag("--check", check,
               "Check the configuration file, say what is wrong with it, and start nothing");
  std::string backing;
  app.add_option("--settle", backing,
                 "For `pmirror settle`: settle this backing directory, and start nothing");
  std::string record;
  app.add_option("--state", record, "With --settle: the record of the copy");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kWrongUsage;
  }
  if (!backing.empty()) {
    const absl::StatusOr<std::string> settled = Settle(backing, record);
    fmt::print(settled.ok() ? stdout : stderr, "{}\n", settled.ok() ? *settled : Text(settled.status()));
    return settled.ok() ? kDone : kFailed;
  }
  absl::StatusOr<Config> config = LoadConfig(file);
  if (!config.ok()) {
    fmt::print(stderr, "{}\n", Text(config.status()));
    return kFailed;
  }
  if (absl::Status status = LoadStored(*config); !status.ok()) {
    fmt::print(stderr, "{}\n", Text(status));
    return kFailed;
  }
  if (check) {
    fmt::print("{}: good\n", file);
    return kDone;
  }
  return Serve(*config);
}

}  // namespace
}  // namespace pmirror::server

int main(int argc, char** argv) { return pmirror::server::Main(argc, argv); }
