// SPDX-License-Identifier: BSD-3-Clause
// A link to a replica that answers what its copy is and opens no session: when a resync is due, when it is tried, and what it is called.
#include "fs/replica_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "server/control_service.h"
#include "tests/unit/server/temp_directory.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

constexpr uint64_t kGeneration = 5;
constexpr uint64_t kMount = 3;

// What the link said of its replica's states.
class StateEvents : public EventSink {
 public:
  void Report(Severity, std::string_view event, const Fields& fields) override {
    const std::lock_guard lock(mutex_);
    if (event == "replica_state") {
      states_.push_back(fields);
    }
  }
  bool Said(const std::string& state, const std::string& of_reason) {
    const std::lock_guard lock(mutex_);
    return std::any_of(states_.begin(), states_.end(), [&](const Fields& fields) {
      bool same = false;
      bool told = false;
      for (const auto& [key, value] : fields) {
        same = same || (key == "state" && value == state);
        told = told || (key == "reason" && value.find(of_reason) != std::string::npos);
      }
      return same && told;
    });
  }

 private:
  std::mutex mutex_;
  std::vector<Fields> states_;
};

class FakeCopy : public server::ReplicaView {
 public:
  control::ReplicaState CopyState() override {
    const std::lock_guard lock(mutex_);
    return state_;
  }
  absl::StatusOr<control::OpenSessionReply> OpenSession(const control::OpenSessionRequest&) override {
    return absl::UnavailableError("not in this test");
  }
  absl::Status Leave(const control::LeaveRequest&) override { return absl::OkStatus(); }
  absl::StatusOr<control::BeginResyncReply> BeginResync(const control::BeginResyncRequest&) override {
    return control::BeginResyncReply();
  }
  absl::StatusOr<control::BeginTrailingReply> BeginTrailing(const control::BeginTrailingRequest&) override {
    return absl::UnavailableError("not in this test");
  }
  absl::Status ChangeTree(const control::ChangeTreeRequest&) override { return absl::OkStatus(); }
  absl::Status AdoptMount(const control::AdoptMountRequest&) override { return absl::OkStatus(); }
  absl::Status EndResync(const control::EndResyncRequest&) override {
    if (on_end) {
      on_end();
    }
    return absl::OkStatus();
  }
  absl::StatusOr<recovery::Inventory> Inventory(recovery::InventoryDetail) override {
    return recovery::Inventory();
  }
  absl::StatusOr<recovery::BlockChecksums> Checksums(FileId, Extent, uint32_t) override {
    return recovery::BlockChecksums();
  }
  void FillStatus(control::VolumeStatus&) override {}
  void WatchPrimary() override {}
  void SetReachable(const std::string&, bool) override {}

  std::function<void()> on_end;

  // It followed `mount` of `generation`, and that did not end cleanly.
  void Set(uint64_t generation, uint64_t mount) {
    const std::lock_guard lock(mutex_);
    state_.set_generation(generation);
    state_.set_mount_number(mount);
  }

 private:
  std::mutex mutex_;
  control::ReplicaState state_;
};

class NoChanges : public server::VolumeChanges {
 public:
  absl::Status HoldCopy(const control::HoldCopyRequest&) override { return absl::UnimplementedError(""); }
  absl::Status DropCopy(const control::DropCopyRequest&) override { return absl::UnimplementedError(""); }
  absl::Status CreateVolume(const control::CreateVolumeRequest&) override {
    return absl::UnimplementedError("");
  }
  absl::Status ChangeMembers(const control::ChangeMembersRequest&, control::ChangeMembersReply&) override {
    return absl::UnimplementedError("");
  }
};

class FakeOwner : public LinkOwner {
 public:
  void Recovered(size_t) override {}
  bool Lost(size_t) override {
    ++out_;
    return proceeds;
  }
  void Unfit(size_t) override { ++out_; }
  void Superseded(size_t, const std::string& reason) override {
    EXPECT_THAT(reason, HasSubstr("stop this daemon"));
    superseded_ = true;
  }
  absl::Status Resync(size_t, ResyncPeer& peer) override {
    out_ = 0;
    whole_.push_back(!peer.FollowedMount().has_value());
    absl::Status status = on_resync(static_cast<int>(whole_.size()), peer);
    ++attempts_;
    return status;
  }
  bool Wanted(size_t) override { return wanted; }
  bool Trails(size_t) override { return false; }
  bool Agrees(size_t, bool, uint64_t) override { return true; }

  int attempts() const { return attempts_; }
  // It was taken out of the set since the last resync began.
  bool out() const { return out_ != 0; }
  bool superseded() const { return superseded_; }
  // Of each resync. Requires: none runs.
  const std::vector<bool>& whole() const { return whole_; }

  std::atomic<bool> proceeds = true;
  std::atomic<bool> wanted = true;
  std::function<absl::Status(int attempt, ResyncPeer& peer)> on_resync = [](int, ResyncPeer&) {
    return absl::OkStatus();
  };

 private:
  std::atomic<int> attempts_ = 0;
  std::atomic<int> out_ = 0;
  std::atomic<bool> superseded_ = false;
  std::vector<bool> whole_;
};

class ReplicaLinkTest : public testing::Test {
 protected:
  void SetUp() override {
    config_.name = "n2";
    config_.file = "n2.toml";
    config_.state_dir = scratch_.path();
    config_.peers = {{"n1", {"192.0.2.1:7400"}}};
    config_.volumes.emplace_back();
    config_.volumes.back().name = "v0";
    config_.volumes.back().nodes = {"n1", "n2"};
    config_.volumes.back().rpo = "0";
    config_.volumes.back().primary = "n1";
    peers_ = std::make_unique<server::PeerWatch>(config_, 1, nullptr);
    served_.Put({std::make_shared<const server::VolumeConfig>(config_.volumes[0]),
                 nullptr,
                 {std::shared_ptr<server::ReplicaView>(), &copy_}});
    service_ = std::make_unique<server::ControlService>(config_, 1, *peers_, journal_, served_, changes_);
    ASSERT_TRUE(service_->Start().ok());
    copy_.Set(kGeneration, kMount - 1);
    link_ = std::make_unique<ReplicaLink>(ReplicaLink::Options{.volume_name = "v0",
                                                               .volume = config_.volumes[0].uuid,
                                                               .primary_node = "n1",
                                                               .replica_node = "n2",
                                                               .index = 0,
                                                               .control = {config_.ControlSocket()},
                                                               .epoch = Epoch{1},
                                                               .mount_number = kMount,
                                                               .history = {.generation = kGeneration,
                                                                           .mount_number = kMount - 1,
                                                                           .operation = 0,
                                                                           .clean = false},
                                                               .deadline = milliseconds(40)},
                                          log_, events_);
  }
  void TearDown() override {
    link_.reset();
    service_.reset();
    peers_.reset();
  }
  static bool Eventually(const std::function<bool()>& condition) {
    const Deadline deadline = Deadline::After(seconds(20));
    while (!condition() && !deadline.Expired()) {
      std::this_thread::yield();
    }
    return condition();
  }
  ReplicaLink::State State() { return link_->status().state; }

  server::TempDirectory scratch_;
  StateEvents events_;
  std::mutex running_;  // for a resync that waits for its test
  OperationLog log_;
  server::Config config_;
  FakeCopy copy_;
  server::EventJournal journal_{{.node = "n2", .held = 5}};
  std::unique_ptr<server::PeerWatch> peers_;
  server::ServedVolumes served_;
  NoChanges changes_;
  std::unique_ptr<server::ControlService> service_;
  FakeOwner owner_;
  std::unique_ptr<ReplicaLink> link_;
};

TEST_F(ReplicaLinkTest, P5_AFullResyncThatIsAskedForDuringAnotherIsDoneBehindIt) {
  owner_.on_resync = [&](int attempt, ResyncPeer&) {
    if (attempt == 1) {
      link_->DemandResync();
    } else {
      copy_.Set(kGeneration + 1, kMount);  // no third one
    }
    return absl::OkStatus();
  };
  link_->Start(owner_);
  ASSERT_TRUE(Eventually([&] { return owner_.attempts() == 2; }));
  link_->Stop();
  EXPECT_EQ(owner_.whole(), (std::vector<bool>{false, true}));
}

TEST_F(ReplicaLinkTest, P5_WhatARunningResyncMadeAMemberDoesNotCountWhenItRefusedDataMeanwhile) {
  owner_.proceeds = false;  // nothing but the refusal makes another one due
  owner_.on_resync = [&](int attempt, ResyncPeer& peer) {
    if (attempt == 1) {
      EXPECT_TRUE(peer.AdoptMount(0).ok());
      copy_.Set(kGeneration, kMount);
      link_->Refused(ENOSPC);
      return absl::OkStatus();
    }
    return absl::FailedPreconditionError("as the test wants");
  };
  link_->Start(owner_);
  EXPECT_TRUE(Eventually([&] { return owner_.attempts() >= 2; }));
}

TEST_F(ReplicaLinkTest, P5_WhoLeftTheSetWhileItWasBroughtBackDoesNotCount) {
  owner_.proceeds = false;  // nothing else makes another one due
  owner_.on_resync = [&](int attempt, ResyncPeer& peer) {
    EXPECT_TRUE(peer.AdoptMount(0).ok());
    copy_.Set(kGeneration, kMount);
    owner_.wanted = attempt > 1;  // found silent
    return absl::OkStatus();
  };
  link_->Start(owner_);
  EXPECT_TRUE(Eventually([&] { return owner_.attempts() >= 2; }));
}

TEST_F(ReplicaLinkTest, APersonWhoAsksAgainDoesNotReadWhyTheLastAttemptFailed) {
  std::unique_lock held(running_);
  owner_.on_resync = [&](int attempt, ResyncPeer&) {
    if (attempt > 1) {
      const std::lock_guard lock(running_);
    }
    return absl::FailedPreconditionError("the cause");
  };
  link_->Start(owner_);
  ASSERT_TRUE(Eventually([&] { return events_.Said("stale", "the cause"); }));
  link_->Hurry();
  EXPECT_EQ(State(), ReplicaLink::State::kResyncing);
  held.unlock();
  link_->Stop();
}

TEST_F(ReplicaLinkTest, AttemptsThatOnlyAPersonCanHelpBecomeRare) {
  std::vector<Deadline::Duration> moments;  // of the link's thread
  owner_.on_resync = [&](int, ResyncPeer&) {
    moments.push_back(Deadline::Now());
    return absl::FailedPreconditionError("the cause");
  };
  link_->Start(owner_);
  ASSERT_TRUE(Eventually([&] { return owner_.attempts() == 6; }));
  link_->Stop();
  // Each attempt costs a walk through both trees. No pause is shorter than this, however slow the machine is.
  for (size_t i = 1; i < moments.size(); ++i) {
    EXPECT_GE(moments[i] - moments[i - 1], milliseconds(10) * (1 << i)) << "before attempt " << i + 1;
  }
}

TEST_F(ReplicaLinkTest, P6_TheEndOfTheDaemonDoesNotWaitForALongCallOfAResync) {
  absl::Notification begun;
  absl::Notification go_on;
  absl::Notification ended;
  copy_.on_end = [&] {
    begun.Notify();
    go_on.WaitForNotification();
    ended.Notify();
  };
  absl::Status result;
  owner_.on_resync = [&](int, ResyncPeer& peer) { return result = peer.End(); };
  link_->Start(owner_);
  ASSERT_TRUE(begun.WaitForNotificationWithTimeout(absl::Seconds(20)));
  link_->Stop();
  EXPECT_TRUE(absl::IsCancelled(result)) << result;
  go_on.Notify();
  EXPECT_TRUE(ended.WaitForNotificationWithTimeout(absl::Seconds(20)));
}

TEST_F(ReplicaLinkTest, P4_ACopyThatFollowsALaterMountFencesThisOne) {
  copy_.Set(kGeneration, kMount + 1);
  link_->Start(owner_);
  EXPECT_TRUE(Eventually([&] { return owner_.superseded(); }));
  EXPECT_EQ(State(), ReplicaLink::State::kStale);
}

TEST_F(ReplicaLinkTest, P4_ItDoesSoAlsoWhileAResyncIsDue) {
  owner_.on_resync = [&](int, ResyncPeer&) {
    copy_.Set(kGeneration, kMount + 1);
    return absl::UnavailableError("as the test wants");
  };
  link_->Start(owner_);
  EXPECT_TRUE(Eventually([&] { return owner_.superseded(); }));
}

TEST_F(ReplicaLinkTest, P6_ACopyOfAnotherHistoryDoesNotStayAMember) {
  copy_.Set(kGeneration + 1, kMount - 1);
  link_->Start(owner_);
  ASSERT_TRUE(Eventually([&] { return State() == ReplicaLink::State::kStale; }));
  EXPECT_TRUE(Eventually([&] { return owner_.out(); }));
  EXPECT_EQ(owner_.attempts(), 0);
  copy_.Set(kGeneration, kMount - 1);  // a person has put the right one there
  link_->Hurry();
  EXPECT_TRUE(Eventually([&] { return owner_.attempts() == 1; }));
}

}  // namespace
}  // namespace pmirror::fs
