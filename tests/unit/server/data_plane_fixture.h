// SPDX-License-Identifier: BSD-3-Clause
// For tests of the replica from its socket: one volume with one file, and the daemon's session.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "tests/unit/server/replica_bed.h"

namespace pmirror::server {

inline constexpr uint64_t kFile = 10;

class DataPlaneTest : public testing::Test {
 protected:
  void SetUp() override { Start(); }
  void Start() {
    bed_.Start();
    daemon_.emplace(bed_.Open(SessionKind::kDaemon));
    if (bed_.volume().applied_operation() == 0) {
      ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(++operations_, CreateOp(kFile, 1, "file"))));
    }
  }
  // A process's session that may write kFile.
  ReplicaClient Process() {
    const ReplicaClient::Identity identity = bed_.Permit(SessionKind::kProcess);
    EXPECT_TRUE(daemon_->AwaitReceived(daemon_->Grant(identity.permit.session, kFile)));
    ReplicaClient client = bed_.Connect(identity);
    EXPECT_TRUE(client.Hello().has_value());
    return client;
  }
  std::string Content() const { return ReadFile(bed_.backing / "file"); }

  ReplicaBed bed_;
  std::optional<ReplicaClient> daemon_;
  uint64_t operations_ = 0;
};

}  // namespace pmirror::server
