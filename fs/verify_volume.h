// SPDX-License-Identifier: BSD-3-Clause
// `pmirror verify` on the primary: compares each replica in turn and tells the caller how far it is.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/control.pb.h"
#include "proto/control_client.h"
#include "recovery/verifier.h"

namespace pmirror::fs {

struct ReplicaToVerify {
  std::string node;
  std::vector<std::string> control;  // addresses
};

struct VolumeToVerify {
  std::string name;
  Uuid uuid{};
  std::string backing;  // directory
};

// The comparison with one replica is complete.
using NoteVerdict = std::function<void(const std::string& node, const recovery::VerifyResult& result)>;

// Blocks until done. The last message sent has `finished` and all differences. Fails when a replica cannot be
// asked: the sentence names it. `send` returns false when the caller is gone.
absl::Status VerifyVolume(const VolumeToVerify& volume, const std::vector<ReplicaToVerify>& replicas,
                          recovery::Freezer& freezer, const NoteVerdict& note,
                          const std::function<bool(const control::VerifyProgress&)>& send);

}  // namespace pmirror::fs
