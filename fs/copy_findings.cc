// SPDX-License-Identifier: BSD-3-Clause
// See copy_findings.h.
#include "fs/copy_findings.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace pmirror::fs {
namespace {

int64_t WallMicroseconds() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

const char* WhatOf(const CopyFindings::Place& place) {
  return recovery::Name(place.extent.length == 0 ? recovery::What::kMissing : recovery::What::kData);
}

}  // namespace

CopyFindings::CopyFindings(std::string volume, std::vector<std::string> nodes, EventSink& events)
    : volume_(std::move(volume)), events_(events) {
  for (std::string& node : nodes) {
    replicas_.push_back({.node = std::move(node), .places = {}, .verdict = {}});
  }
}

void CopyFindings::Add(const std::string& node) {
  const std::lock_guard lock(mutex_);
  replicas_.push_back({.node = node, .places = {}, .verdict = {}});
}

void CopyFindings::Remove(size_t index) {
  const std::lock_guard lock(mutex_);
  TellEqual(replicas_[index]);
  replicas_[index] = {};
}

void CopyFindings::RoundBegan(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  for (Replica& replica : replicas_) {
    replica.round_more = false;
    replica.round_whole = true;
  }
  round_bytes_ = bytes;
  round_done_ = 0;
}

void CopyFindings::RoundEnded() {
  const std::lock_guard lock(mutex_);
  ++rounds_;
  for (Replica& replica : replicas_) {
    replica.more = replica.round_more || (replica.more && !replica.round_whole);
    TellIfEqual(replica);
  }
}

void CopyFindings::Looked(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  round_done_ += bytes;
}

void CopyFindings::NotCompared(size_t replica) {
  const std::lock_guard lock(mutex_);
  replicas_[replica].round_whole = false;
}

void CopyFindings::Compared(size_t replica, uint64_t bytes, uint64_t busy) {
  const std::lock_guard lock(mutex_);
  replicas_[replica].compared += bytes;
  replicas_[replica].busy += busy;
  replicas_[replica].time_us = WallMicroseconds();
}

void CopyFindings::Differs(size_t index, const Place& place) {
  const std::lock_guard lock(mutex_);
  Replica& replica = replicas_[index];
  std::erase_if(replica.places, [&](const Place& other) {
    return other.file == place.file &&
           (other.extent == place.extent ||
            (other.extent.offset < place.extent.end() && place.extent.offset < other.extent.end()));
  });
  if (replica.places.size() < kMostPlaces) {
    replica.places.push_back(place);
  } else {
    replica.more = replica.round_more = true;
  }
  Tell(replica, "check", place.path, WhatOf(place), place.extent);
}

std::vector<CopyFindings::Place> CopyFindings::Known(size_t replica) const {
  const std::lock_guard lock(mutex_);
  return replicas_[replica].places;
}

void CopyFindings::Mended(size_t index, const Place& place) {
  const std::lock_guard lock(mutex_);
  Replica& replica = replicas_[index];
  std::erase_if(replica.places,
                [&](const Place& other) { return other.file == place.file && other.extent == place.extent; });
  TellIfEqual(replica);
}

void CopyFindings::Verified(const std::string& node, const recovery::VerifyResult& result) {
  const std::lock_guard lock(mutex_);
  for (Replica& replica : replicas_) {
    if (replica.node != node) {
      continue;
    }
    replica.verdict = {.time_us = WallMicroseconds(),
                       .bytes = result.bytes,
                       .differences = result.differences.size(),
                       .busy = result.busy.size()};
    replica.verify_says = !result.differences.empty();
    if (replica.verify_says) {
      const recovery::Difference& first = result.differences.front();
      Tell(replica, "verify", first.path, recovery::Name(first.what), first.extent);
    } else if (result.busy.empty()) {  // else one of the places may be among what could not be compared
      replica.places.clear();
      replica.more = replica.round_more = false;
      TellEqual(replica);
    }
  }
}

// Under mutex_, as the next, so that both are told in their order.
void CopyFindings::Tell(Replica& replica, const char* found_by, const std::string& path, const char* what,
                        Extent extent) {
  replica.told = true;
  events_.Report(Severity::kError, "copies_differ",
                 {{"volume", volume_},
                  {"node", replica.node},
                  {"found_by", found_by},
                  {"path", path},
                  {"what", what},
                  {"offset", std::to_string(extent.offset)},
                  {"length", std::to_string(extent.length)},
                  {"remedy", "pmirror verify " + volume_ + " --repair " + replica.node}});
}

void CopyFindings::TellIfEqual(Replica& replica) {
  if (replica.places.empty() && !replica.more && !replica.verify_says) {
    TellEqual(replica);
  }
}

void CopyFindings::TellEqual(Replica& replica) {
  if (std::exchange(replica.told, false)) {
    events_.Report(Severity::kInfo, "copies_equal", {{"volume", volume_}, {"node", replica.node}});
  }
}

void CopyFindings::Fill(size_t index, control::ReplicaStatus& status) const {
  const std::lock_guard lock(mutex_);
  const Replica& replica = replicas_[index];
  control::CheckStatus& check = *status.mutable_check();
  check.set_rounds(rounds_);
  check.set_round_bytes(round_bytes_);
  check.set_round_done(round_done_);
  check.set_bytes_compared(replica.compared);
  check.set_busy_bytes(replica.busy);
  check.set_time_us(replica.time_us);
  check.set_differences(replica.places.size());
  if (!replica.places.empty()) {
    const Place& first = replica.places.front();
    control::Difference& message = *check.mutable_first();
    message.set_replica(replica.node);
    message.set_path(first.path);
    message.set_what(WhatOf(first));
    message.set_offset(first.extent.offset);
    message.set_length(first.extent.length);
  }
  if (replica.verdict.has_value()) {
    control::VerifyStatus& verify = *status.mutable_verify();
    verify.set_time_us(replica.verdict->time_us);
    verify.set_bytes(replica.verdict->bytes);
    verify.set_differences(replica.verdict->differences);
    verify.set_busy(replica.verdict->busy);
  }
}

}  // namespace pmirror::fs
