// SPDX-License-Identifier: BSD-3-Clause
// `pmirror events`.
#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "cli/commands.h"
#include "cli/event_stream.h"
#include "cli/outcome.h"
#include "cli/target.h"
#include "proto/control_client.h"

namespace pmirror::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::chrono::seconds kTimeout{10};
constexpr std::chrono::hours kFollowTimeout{24};  // then the call is made again
constexpr milliseconds kRetryPause{200};
constexpr milliseconds kOrderPause{300};  // how long an event waits for older ones of other nodes
constexpr milliseconds kPrintPause{50};

struct EventsOptions {
  TargetOptions target;
  bool follow = false;
  bool json = false;
  std::string volume;
  std::string node;
  uint64_t since = 0;
};

std::string NameOf(const Endpoint& endpoint) {
  return endpoint.node.empty() ? "the daemon of this host" : endpoint.node;
}

// False when there is nobody any more who reads.
bool Print(const EventsOptions& options, const std::vector<control::Event>& events) {
  for (const control::Event& event : events) {
    if (event.gap()) {
      Note(fmt::format("older events of {} are not kept any more", event.node()));
    }
    const std::string line =
        options.json ? EventJson(event).dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace)
                     : EventLine(event);
    if (std::fputs((line + "\n").c_str(), stdout) < 0) {
      return false;
    }
  }
  return std::fflush(stdout) == 0;
}

int PrintFailed() { return Fail("cannot write to standard output"); }

control::EventsRequest RequestOf(const EventsOptions& options, uint64_t after) {
  control::EventsRequest request;
  request.set_after(after);
  request.set_volume(options.volume);
  return request;
}

int Show(const EventsOptions& options, const std::vector<Endpoint>& endpoints) {
  EventOrder order;
  bool asked = false;
  for (const Endpoint& endpoint : endpoints) {
    const absl::Status status =
        proto::ControlClient({endpoint.control})
            .Events(RequestOf(options, options.since), kTimeout, [&order](const control::Event& event) {
              order.Add(steady_clock::now(), event);
              return true;
            });
    asked = asked || status.ok();
    if (!status.ok()) {
      Note(fmt::format("{} cannot be asked: {}", NameOf(endpoint), Sentence(status)));
    }
  }
  if (!asked) {
    return Fail("no daemon could be asked; is pmirrord running?");
  }
  return Print(options, order.TakeAll()) ? kDone : PrintFailed();
}

// Follows one node for as long as the process lives. What it learns goes to `order`, under `mutex`.
void FollowNode(const EventsOptions& options, const Endpoint& endpoint, std::mutex& mutex,
                EventOrder& order) {
  proto::ControlClient client({endpoint.control});
  uint64_t after = options.since;
  bool away = false;
  for (;;) {
    control::EventsRequest request = RequestOf(options, after);
    request.set_follow(true);
    const absl::Status status = client.Events(request, kFollowTimeout, [&](const control::Event& event) {
      const std::lock_guard lock(mutex);
      after = event.seq();
      away = false;
      order.Add(steady_clock::now(), event);
      return true;
    });
    if (!std::exchange(away, true)) {
      const std::lock_guard lock(mutex);
      Note(fmt::format("waiting for {}: {}", NameOf(endpoint), Sentence(status)));
    }
    // Sleep because: nobody tells that the daemon is back.
    std::this_thread::sleep_for(kRetryPause);
  }
}

int Follow(const EventsOptions& options, const std::vector<Endpoint>& endpoints) {
  sigset_t ending;
  ::sigemptyset(&ending);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    ::sigaddset(&ending, number);
  }
  ::pthread_sigmask(SIG_BLOCK, &ending, nullptr);  // in all threads: taken below
  std::mutex mutex;
  EventOrder order;
  for (const Endpoint& endpoint : endpoints) {
    std::thread([&options, &mutex, &order, endpoint] {
      FollowNode(options, endpoint, mutex, order);
    }).detach();
  }
  constexpr timespec kPause{0, std::chrono::nanoseconds(kPrintPause).count()};
  int exit_code = kDone;
  for (bool ended = false; !ended;) {
    ended = ::sigtimedwait(&ending, nullptr, &kPause) >= 0;
    const std::lock_guard lock(mutex);
    const auto until = ended ? steady_clock::time_point::max() : steady_clock::now() - kOrderPause;
    if (!Print(options, order.TakeUntil(until))) {
      exit_code = PrintFailed();
      ended = true;
    }
  }
  // The threads wait in calls that nothing shortens, and hold nothing that outlives the process.
  std::_Exit(exit_code);
}

int Events(const EventsOptions& options) {
  const absl::StatusOr<Target> target = Target::Resolve(options.target);
  if (!target.ok()) {
    return Fail(target.status());
  }
  std::vector<Endpoint> endpoints = target->All();
  if (!options.node.empty()) {
    std::vector<std::string> names;
    for (const Endpoint& endpoint : endpoints) {
      names.push_back(endpoint.node);
    }
    if (!target->sandbox()) {
      return Fail("--node chooses a node of a sandbox: name one with --sandbox");
    }
    std::erase_if(endpoints, [&](const Endpoint& endpoint) { return endpoint.node != options.node; });
    if (endpoints.empty()) {
      return Fail(fmt::format("there is no node '{}'; there are {}", options.node, fmt::join(names, ", ")));
    }
  }
  if (options.since != 0 && endpoints.size() != 1) {
    return Fail("each node counts its own events: name one with --node to use --since");
  }
  return options.follow ? Follow(options, endpoints) : Show(options, endpoints);
}

}  // namespace

void AddEvents(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<EventsOptions>();
  CLI::App* events =
      app.add_subcommand("events",
                         "What happened: one line an event, with its time, node, severity, name and fields.\n"
                         "docs/events.md says what each means and what to do");
  options->target.AddTo(*events);
  events->add_flag("--follow", options->follow,
                   "Go on until interrupted, also when a daemon is started again");
  events->add_flag("--json", options->json, "Print one JSON object a line");
  events->add_option("--volume", options->volume, "Only events of this volume");
  events->add_option("--node", options->node, "Only events that this node of the sandbox reports");
  events->add_option("--since", options->since,
                     "Only events of the node behind this number (`seq` of --json)");
  events->callback([options, &exit_code] { exit_code = Events(*options); });
}

}  // namespace pmirror::cli
