// SPDX-License-Identifier: BSD-3-Clause
// Both real ends of the local protocol: programs under the preload library, on a mounted volume, with the registry behind it. The replica is a fake one.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>

#include "tests/unit/fs/client_fixture.h"
#include "tests/unit/interpose/guest_process.h"
#include "tests/unit/replication/fake_replica.h"

namespace pmirror::fs {
namespace {

class ClientPreloadTest : public ClientFixture {
 protected:
  void SetUp() override {
    ClientFixture::SetUp();
    volume_.Attach(replica_);
    file_ = MakeFile("f", 16);
  }
  std::unique_ptr<interpose::GuestProcess> Launch(const std::string& command) {
    return std::make_unique<interpose::GuestProcess>(
        command, volume_.At("f"),
        std::vector<std::string>{std::string(local::kSocketEnvironment) + "=" + socket()});
  }
  void ExpectSuccess(interpose::GuestProcess& guest) {
    const int status = guest.Wait();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status << ": " << guest.complaints();
    EXPECT_TRUE(volume_.WaitFor([&] { return volume_.writing_mappers[file_] == 0; }));
  }
  std::string ReplicatedAt(size_t offset, size_t length) {
    const std::vector<std::byte> image = replica_.Image(file_);
    return offset + length <= image.size()
               ? std::string(reinterpret_cast<const char*>(&image[offset]), length)
               : "nothing there";
  }

  FakeReplica replica_;
  FileId file_{};
};

TEST_F(ClientPreloadTest, AProgramMapsStoresAndSyncs) {
  const auto guest = Launch("store_and_msync");
  ExpectSuccess(*guest);
  EXPECT_EQ(ReplicatedAt(3 * kPage + 100, 5), "hello");
  EXPECT_EQ(volume_.Held(file_), std::vector<Extent>{}) << "nothing is left to hold";
  EXPECT_EQ(registry_.AcknowledgedSyncs(0), 1U);
  EXPECT_EQ(volume_.TakeGranted().size(), 1U);
}

TEST_F(ClientPreloadTest, WhatIsDirtyAtExitIsHandedOver) {
  const auto guest = Launch("dirty_at_exit");
  ExpectSuccess(*guest);
  EXPECT_EQ(volume_.Held(file_), (std::vector<Extent>{{kPage, kPage}}));
}

TEST_F(ClientPreloadTest, Trap6AForkedChildIsAProgramOfItsOwn) {
  const auto guest = Launch("fork");
  guest->Expect("child done");
  EXPECT_EQ(ReplicatedAt(2 * kPage, 12), "by the child");
  EXPECT_EQ(Take(file_, 16), (std::vector<Extent>{{kPage, kPage}})) << "what the parent stored";
  guest->Continue();
  ExpectSuccess(*guest);
}

TEST_F(ClientPreloadTest, ExecHandsOverAndAFailedOneBreaksNothing) {
  const auto guest = Launch("exec_hands_over");
  guest->Expect("failed");
  EXPECT_EQ(volume_.Held(file_), (std::vector<Extent>{{4 * kPage, kPage}}));
  EXPECT_EQ(volume_.WritingMappersOf(file_), 1U);
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(ReplicatedAt(5 * kPage, 10), "still here");
  EXPECT_EQ(volume_.Held(file_), (std::vector<Extent>{{4 * kPage, kPage}, {6 * kPage, kPage}}));
}

// The guest's parent has stored to page 1 without a sync, and waits.
class AnotherDaemon : public ClientPreloadTest {
 protected:
  void SetUp() override {
    ClientPreloadTest::SetUp();
    guest_ = Launch("fork");
    guest_->Expect("child done");
    registry_.Stop();
    volume_.Locked([&] { volume_.held.clear(); });
    ASSERT_TRUE(registry_.Start(socket()).ok());
    EXPECT_EQ(events_.Count("program_adopted"), 1U);
    EXPECT_EQ(volume_.WritingMappersOf(file_), 1U);
    EXPECT_TRUE(registry_.IsAnnounced(guest_->pid()));
  }

  std::unique_ptr<interpose::GuestProcess> guest_;
};

TEST_F(AnotherDaemon, Trap4SeesTheStoresOfAProgramThatHasNotJoined) {
  EXPECT_EQ(Take(file_, 16), (std::vector<Extent>{{kPage, kPage}}));
  guest_->Continue();
  ExpectSuccess(*guest_);
}

TEST_F(AnotherDaemon, P3_IsJoinedByTheProgramsNextSync) {
  guest_->Continue();
  ExpectSuccess(*guest_);
  EXPECT_EQ(ReplicatedAt(kPage, 13), "by the parent");
  EXPECT_EQ(events_.Count("program_ended_mapped"), 1U)
      << "Stop(): what was adopted is not ended as if it had been lost";
}

TEST_F(AnotherDaemon, Trap7HoldsWhatAKilledProgramHadMapped) {
  ::kill(guest_->pid(), SIGKILL);
  EXPECT_TRUE(volume_.WaitFor([&] { return volume_.writing_mappers[file_] == 0; }));
  EXPECT_EQ(volume_.Held(file_), (std::vector<Extent>{{0, 16 * kPage}}));
  guest_->Wait();
}

}  // namespace
}  // namespace pmirror::fs
