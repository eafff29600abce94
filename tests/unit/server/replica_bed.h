// SPDX-License-Identifier: BSD-3-Clause
// For tests: one replicated volume behind a listener, its directories, and short ways to open sessions with
// it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "server/data_listener.h"
#include "server/replica_volume.h"
#include "tests/unit/server/replica_client.h"
#include "tests/unit/server/temp_directory.h"
#include "tests/unit/server/tree.h"

namespace pmirror::server {

class ReplicaBed {
 public:
  explicit ReplicaBed(Domain domain = Domain::kVolatile) {
    options_.name = "v0";
    options_.uuid = *recovery::ParseUuid("00112233-4455-6677-8899-aabbccddeeff");
    options_.backing = backing.path();
    options_.state_directory = state.path();
    options_.domain = domain;
    listening_.addresses = {"127.0.0.1:0", "[::1]:0"};
  }
  ~ReplicaBed() { Stop(); }

  ReplicaVolume::Options& options() { return options_; }
  DataListener::Options& listening() { return listening_; }

  void Start() {
    auto opened = ReplicaVolume::Open(options_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    volume_ = *std::move(opened);
    auto started = DataListener::Start(listening_, {volume_.get()});
    ASSERT_TRUE(started.ok()) << started.status();
    listener_ = *std::move(started);
  }
  // As when the daemon is killed: nothing is told to anybody, nothing is recorded.
  void Stop() {
    listener_.reset();
    volume_.reset();
  }

  ReplicaVolume& volume() { return *volume_; }
  DataListener& listener() { return *listener_; }

  ReplicaVolume::SessionRequest Request(SessionKind kind, uint64_t session = 0) const {
    ReplicaVolume::SessionRequest request;
    request.node = "n1";
    request.epoch = epoch;
    request.kind = kind;
    request.session = SessionId{session};
    request.process = "test";
    request.generation = 77;
    request.mount_number = mount_number;
    return request;
  }
  ReplicaClient::Identity Permit(SessionKind kind, uint64_t session = 0) {
    const auto permit = volume_->PrepareSession(Request(kind, session));
    EXPECT_TRUE(permit.ok()) << permit.status();
    return {options_.uuid, epoch, kind, permit.ok() ? *permit : SessionTable::Permit{}};
  }
  ReplicaClient Connect(const ReplicaClient::Identity& identity, size_t address = 0) {
    return ReplicaClient(listener_->addresses()[address], identity);
  }
  // A session whose hello was answered.
  ReplicaClient Open(SessionKind kind) {
    ReplicaClient client = Connect(Permit(kind));
    EXPECT_TRUE(client.Hello().has_value());
    return client;
  }

  TempDirectory backing;
  TempDirectory state;
  Epoch epoch{1};
  uint64_t mount_number = 1;

 private:
  ReplicaVolume::Options options_;
  DataListener::Options listening_;
  std::unique_ptr<ReplicaVolume> volume_;
  std::unique_ptr<DataListener> listener_;
};

}  // namespace pmirror::server
