// SPDX-License-Identifier: BSD-3-Clause
// Whom a command talks to: the daemon of this host, or those of a sandbox.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/sandbox_plan.h"

namespace CLI {
class App;
}

namespace pmirror::cli {

// The options --sandbox and --config, as every command takes them.
struct TargetOptions {
  std::string sandbox;  // directory; empty: the daemon of this host
  std::string config;
  void AddTo(CLI::App& command);
};

struct Endpoint {
  std::string node;     // empty: the daemon of this host
  std::string control;  // "unix:/path"
};

class Target {
 public:
  static absl::StatusOr<Target> Resolve(const TargetOptions& options);

  const std::optional<Sandbox>& sandbox() const { return sandbox_; }
  // Every daemon that may know something.
  std::vector<Endpoint> All() const;
  // The daemon to ask about a volume: that of its primary. kNotFound names the volumes there are.
  absl::StatusOr<Endpoint> PrimaryOf(const std::string& volume) const;
  // Of the daemon of this host, for programs. Requires: no sandbox.
  const std::string& local_socket() const { return local_socket_; }

 private:
  std::optional<Sandbox> sandbox_;
  std::string control_;
  std::string local_socket_;
};

}  // namespace pmirror::cli
