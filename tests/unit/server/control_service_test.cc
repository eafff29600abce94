// SPDX-License-Identifier: BSD-3-Clause
// The control service and its client, over real sockets: routing to views, refusals, several addresses, deadlines, heartbeats.
#include "server/control_service.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <thread>

#include "absl/synchronization/notification.h"
#include "fs/remote_tree.h"
#include "proto/control_client.h"
#include "server/peer_watch.h"
#include "tests/unit/server/fake_views.h"

namespace pmirror::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

constexpr auto kTimeout = 10s;

// A TCP port of the loopback interface that nobody uses, or, while `listening`, one whose connections are
// never served.
class Port {
 public:
  explicit Port(bool listening = false) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length), 0);
    address_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    if (listening) {
      EXPECT_EQ(::listen(fd_, 16), 0);
    }
  }
  ~Port() { Release(); }
  void Release() {
    if (fd_ >= 0) {
      ::close(fd_);
      fd_ = -1;
    }
  }
  const std::string& address() const { return address_; }

 private:
  int fd_;
  std::string address_;
};

Uuid MakeUuid(uint8_t byte) {
  Uuid uuid{};
  uuid.fill(std::byte{byte});
  return uuid;
}

std::string Bytes(const Uuid& uuid) { return {reinterpret_cast<const char*>(uuid.data()), uuid.size()}; }

// A node "n1" that is primary of v0 and replica of v1, with a peer "n2".
class ControlServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "pmirror-control-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    config_.name = "n1";
    config_.file = "n1.toml";
    config_.state_dir = name;
    config_.control = {port_.address()};
    config_.data = {"192.0.2.1:7401"};
    config_.peers = {{"n2", {peer_port_.address()}}};
    for (const char* volume : {"v0", "v1"}) {
      config_.volumes.emplace_back();
      config_.volumes.back().name = volume;
      config_.volumes.back().nodes = {"n1", "n2"};
      config_.volumes.back().rpo = "0";
    }
    config_.volumes[0].uuid = MakeUuid(1);
    config_.volumes[0].primary = "n1";
    config_.volumes[1].uuid = MakeUuid(2);
    config_.volumes[1].primary = "n2";
    port_.Release();
    peers_ = std::make_unique<PeerWatch>(config_, 1, nullptr);
    served_.Put(
        {std::make_shared<const VolumeConfig>(config_.volumes[0]), NotOwned<PrimaryView>(primary_), nullptr});
    served_.Put(
        {std::make_shared<const VolumeConfig>(config_.volumes[1]), nullptr, NotOwned<ReplicaView>(replica_)});
    service_ = std::make_unique<ControlService>(config_, 1, *peers_, journal_, served_, changes_);
    ASSERT_TRUE(service_->Start().ok());
  }
  void TearDown() override {
    service_.reset();
    peers_.reset();
    std::filesystem::remove_all(config_.state_dir);
  }
  control::HelloRequest HelloFrom(const std::string& node) {
    control::HelloRequest request;
    request.set_node(node);
    return request;
  }

  void AppendEvents(int count) {
    for (int i = 0; i < count; ++i) {
      ++appended_;
      journal_.Append(std::chrono::system_clock::now(), LogLevel::kWarn, "e" + std::to_string(appended_),
                      {{"volume", appended_ % 2 == 0 ? "v0" : "v1"}});
    }
  }

  int appended_ = 0;
  absl::Notification followed_;
  Port port_;
  Port peer_port_;
  Config config_;
  FakePrimary primary_;
  FakeReplica replica_;
  EventJournal journal_{{.node = "n1", .held = 5}};
  std::unique_ptr<PeerWatch> peers_;
  ServedVolumes served_;
  NoChanges changes_;
  std::unique_ptr<ControlService> service_;
};

TEST_F(ControlServiceTest, AnswersOnTheNetworkAndOnItsUnixSocketWhichOnlyTheOwnerMayUse) {
  EXPECT_TRUE(proto::ControlClient({port_.address()}).Hello(HelloFrom("n2"), kTimeout).ok());
  EXPECT_TRUE(proto::ControlClient({config_.ControlSocket()}).Hello(HelloFrom("n2"), kTimeout).ok());
  struct stat attributes {};
  ASSERT_EQ(::stat((config_.state_dir / "control.sock").c_str(), &attributes), 0);
  EXPECT_EQ(attributes.st_mode & 0777, 0600u);
}

TEST_F(ControlServiceTest, P9_ANodeThatTheConfigurationDoesNotNameIsRefusedWithTheRemedy) {
  proto::ControlClient client({port_.address()});
  const absl::Status status = client.Hello(HelloFrom("n9"), kTimeout).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("add it to n1.toml"));
}

TEST_F(ControlServiceTest, SessionsAreOpenedAtTheReplicaOfThatUuidAndGetThisNodesDataAddresses) {
  proto::ControlClient client({port_.address()});
  control::OpenSessionRequest request;
  request.set_node("n2");
  request.set_epoch(5);
  request.set_volume(Bytes(MakeUuid(2)));
  const absl::StatusOr<control::OpenSessionReply> reply = client.OpenSession(request, kTimeout);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->session(), 105u);
  EXPECT_THAT(reply->data_addresses(), ElementsAre("192.0.2.1:7401"));

  request.set_volume(Bytes(MakeUuid(1)));
  EXPECT_EQ(client.OpenSession(request, kTimeout).status().code(), absl::StatusCode::kFailedPrecondition);
  request.set_volume(Bytes(MakeUuid(3)));
  EXPECT_EQ(client.OpenSession(request, kTimeout).status().code(), absl::StatusCode::kNotFound);
  request.set_volume("short");
  EXPECT_EQ(client.OpenSession(request, kTimeout).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ControlServiceTest, AnErrorOfAViewArrivesWithItsCodeAndSentence) {
  control::LeaveRequest request;
  request.set_volume(Bytes(MakeUuid(2)));
  const absl::Status status = proto::ControlClient({port_.address()}).Leave(request, kTimeout).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("lacks operations"));
}

TEST_F(ControlServiceTest, AResyncIsHandedToTheReplicaStepByStep) {
  proto::ControlClient client({port_.address()});
  control::BeginResyncRequest begin;
  begin.set_volume(std::string(16, '\2'));
  begin.set_node("n2");
  begin.set_mount_number(6);
  const auto begun = client.BeginResync(begin, kTimeout);
  ASSERT_TRUE(begun.ok()) << begun.status();
  EXPECT_EQ(begun->token(), 7U);
  control::ChangeTreeRequest change;
  change.set_volume(begin.volume());
  change.add_operations("one");
  change.add_operations("two");
  EXPECT_TRUE(client.ChangeTree(change, kTimeout).ok());
  EXPECT_EQ(replica_.operations, 2U);
}

TEST_F(ControlServiceTest, RemoteTreeGivesWhatTheReplicaGave) {
  proto::ControlClient client({port_.address()});
  fs::RemoteTree tree(client, MakeUuid(2), kTimeout);
  const absl::StatusOr<recovery::Inventory> inventory = tree.Inventory();
  ASSERT_TRUE(inventory.ok()) << inventory.status();
  ASSERT_EQ(inventory->size(), 2u);
  EXPECT_EQ((*inventory)[1].path, "a\xff");
  EXPECT_EQ((*inventory)[1].id, FileId{9});
  EXPECT_EQ((*inventory)[1].xattr_crc, 77u);
  EXPECT_TRUE((*inventory)[1].xattrs.empty());
  const absl::StatusOr<recovery::BlockChecksums> sums = tree.Checksums(FileId{9}, {4, 8}, 16);
  ASSERT_TRUE(sums.ok()) << sums.status();
  EXPECT_THAT(sums->sums, ElementsAre(recovery::BlockSum{4, 1}, recovery::BlockSum{2, 16}));
  EXPECT_EQ(sums->size, 8u);
  EXPECT_EQ(tree.Checksums(FileId{1}, {4, 8}, 16).status().code(), absl::StatusCode::kNotFound);
  fs::RemoteTree of_another(client, MakeUuid(7), kTimeout);
  EXPECT_EQ(of_another.Checksums(FileId{9}, {4, 8}, 16).status().code(),
            absl::StatusCode::kFailedPrecondition)
      << "it says nothing of the file";
}

TEST_F(ControlServiceTest, RemoteTreeGivesTheFullDetailWhenItIsAskedFor) {
  proto::ControlClient client({port_.address()});
  fs::RemoteTree tree(client, MakeUuid(2), kTimeout, recovery::InventoryDetail::kFull);
  const absl::StatusOr<recovery::Inventory> inventory = tree.Inventory();
  ASSERT_TRUE(inventory.ok()) << inventory.status();
  ASSERT_EQ(inventory->size(), 2u);
  EXPECT_FALSE((*inventory)[0].orphan);
  const recovery::TreeItem& item = (*inventory)[1];
  EXPECT_EQ(item.xattr_crc, 77u);
  EXPECT_EQ(item.xattrs, (recovery::Xattrs{{"trusted.a", std::string("\0b", 2)}, {"user.\xff", ""}}));
  EXPECT_EQ(item.atime, (OpTime{-1, 2}));
  EXPECT_EQ(item.mtime, (OpTime{3, 4}));
  EXPECT_TRUE(item.orphan);
}

TEST_F(ControlServiceTest, StatusTellsTheRoleOfEachVolume) {
  const absl::StatusOr<control::StatusReply> reply =
      proto::ControlClient({config_.ControlSocket()}).Status({}, kTimeout);
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_EQ(reply->volumes_size(), 2);
  EXPECT_EQ(reply->volumes(0).role(), "primary");
  EXPECT_EQ(reply->volumes(0).epoch(), 3u);
  EXPECT_EQ(reply->volumes(0).on_loss(), "suspend");
  EXPECT_EQ(reply->volumes(1).role(), "replica");
  EXPECT_EQ(reply->volumes(1).primary(), "n2");
  EXPECT_EQ(reply->peers(0).node(), "n2");
  EXPECT_FALSE(reply->peers(0).reachable());
}

TEST_F(ControlServiceTest, VerifyStreamsToTheEndAndAReplicaRefusesIt) {
  proto::ControlClient client({config_.ControlSocket()});
  control::VerifyRequest request;
  request.set_volume("v0");
  std::vector<control::VerifyProgress> seen;
  const auto take = [&seen](const control::VerifyProgress& progress) {
    seen.push_back(progress);
    return true;
  };
  ASSERT_TRUE(client.Verify(request, kTimeout, take).ok());
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_TRUE(seen[1].finished());
  EXPECT_EQ(seen[1].differences(0).path(), "a\xff");
  request.set_volume("v1");
  EXPECT_EQ(client.Verify(request, kTimeout, take).code(), absl::StatusCode::kFailedPrecondition);
  request.set_volume("v7");
  EXPECT_EQ(client.Verify(request, kTimeout, take).code(), absl::StatusCode::kNotFound);
}

TEST_F(ControlServiceTest, ACallerMayStopTakingAStream) {
  control::VerifyRequest request;
  request.set_volume("v0");
  proto::ControlClient client({config_.ControlSocket()});
  EXPECT_EQ(client.Verify(request, kTimeout, [](const control::VerifyProgress&) { return false; }).code(),
            absl::StatusCode::kCancelled);
}

TEST_F(ControlServiceTest, EventsAreToldFromANumberOnAndThoseOfOneVolumeAlone) {
  journal_.Open(config_.state_dir);
  AppendEvents(7);
  proto::ControlClient client({config_.ControlSocket()});
  std::vector<control::Event> seen;
  const auto take = [&seen](const control::Event& event) {
    seen.push_back(event);
    return true;
  };
  control::EventsRequest request;
  request.set_after(1);
  ASSERT_TRUE(client.Events(request, kTimeout, take).ok());
  ASSERT_EQ(seen.size(), 5u);
  EXPECT_EQ(seen[0].seq(), 3u);
  EXPECT_TRUE(seen[0].gap()) << "2 is not kept";
  EXPECT_EQ(seen[0].event(), "e3");
  EXPECT_EQ(seen[0].node(), "n1");
  EXPECT_EQ(seen[0].severity(), "warning");
  EXPECT_EQ(seen[0].fields(0).value(), "v1");
  EXPECT_FALSE(seen[1].gap());
  seen.clear();
  request.set_volume("v0");
  ASSERT_TRUE(client.Events(request, kTimeout, take).ok());
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[1].event(), "e6");
}

TEST_F(ControlServiceTest, P6_WhoFollowsEventsGetsEachAtOnceAndEndsWithTheService) {
  journal_.Open(config_.state_dir);
  AppendEvents(2);
  control::EventsRequest request;
  request.set_follow(true);
  std::vector<uint64_t> seen;
  absl::Status status;
  std::thread follower([&] {
    status = proto::ControlClient({config_.ControlSocket()})
                 .Events(request, kTimeout, [&](const control::Event& event) {
                   seen.push_back(event.seq());
                   if (seen.size() == 2) {
                     AppendEvents(1);  // after everything that there was
                   } else if (seen.size() == 3) {
                     followed_.Notify();
                   }
                   return true;
                 });
  });
  followed_.WaitForNotification();
  service_->Stop();
  follower.join();
  EXPECT_THAT(seen, ElementsAre(1, 2, 3));
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
}

TEST_F(ControlServiceTest, P6_NoMoreThanSoManyFollowEventsAndThePlaceOfOneThatWentIsFree) {
  journal_.Open(config_.state_dir);
  AppendEvents(1);
  control::EventsRequest request;
  request.set_follow(true);
  for (int i = 0; i < 50; ++i) {  // each gives up after its first event
    proto::ControlClient client({config_.ControlSocket()});
    absl::Status status = absl::ResourceExhaustedError("");
    const auto end = std::chrono::steady_clock::now() + kTimeout;
    while (absl::IsResourceExhausted(status) && std::chrono::steady_clock::now() < end) {
      status = client.Events(request, kTimeout, [](const control::Event&) { return false; });
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << i;
  }
}

TEST_F(ControlServiceTest, CuttingANodeIsForTheOwnSocketOnlyAndRefusesItsCalls) {
  control::SetReachableRequest request;
  request.set_node("n2");
  proto::ControlClient network({port_.address()});
  proto::ControlClient own({config_.ControlSocket()});
  EXPECT_EQ(network.SetReachable(request, kTimeout).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(network.Hello(HelloFrom("n2"), kTimeout).ok());
  ASSERT_TRUE(own.SetReachable(request, kTimeout).ok());
  EXPECT_THAT(primary_.reachable_calls, ElementsAre(std::pair("n2", false)));
  EXPECT_EQ(network.Hello(HelloFrom("n2"), kTimeout).status().code(), absl::StatusCode::kUnavailable);
  request.set_reachable(true);
  ASSERT_TRUE(own.SetReachable(request, kTimeout).ok());
  EXPECT_TRUE(network.Hello(HelloFrom("n2"), kTimeout).ok());
  request.set_node("n9");
  EXPECT_EQ(own.SetReachable(request, kTimeout).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ControlServiceTest, OnlyThisHostMayChangeVolumesAndOnlyAPeerMayAskForACopy) {
  proto::ControlClient own({config_.ControlSocket()});
  proto::ControlClient network({port_.address()});
  EXPECT_EQ(own.CreateVolume({}, kTimeout).status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(own.ChangeMembers({}, kTimeout).status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(network.CreateVolume({}, kTimeout).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(network.ChangeMembers({}, kTimeout).status().code(), absl::StatusCode::kPermissionDenied);
  control::HoldCopyRequest hold;
  control::DropCopyRequest drop;
  EXPECT_EQ(network.HoldCopy(hold, kTimeout).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(network.DropCopy(drop, kTimeout).status().code(), absl::StatusCode::kPermissionDenied);
  hold.set_node("n2");
  drop.set_node("n2");
  EXPECT_EQ(network.HoldCopy(hold, kTimeout).status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(network.DropCopy(drop, kTimeout).status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(ControlServiceTest, P9_AnAddressInUseIsNamed) {
  ControlService second(config_, 2, *peers_, journal_, served_, changes_);
  const absl::Status status = second.Start();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(port_.address()));
}

TEST_F(ControlServiceTest, TheClientGoesOnToTheNextAddressWhenOneRefuses) {
  proto::ControlClient client({peer_port_.address(), port_.address()});
  EXPECT_TRUE(client.Hello(HelloFrom("n2"), kTimeout).ok());
}

TEST_F(ControlServiceTest, TheClientGoesOnToTheNextAddressWhenOneIsSilent) {
  const Port silent(/*listening=*/true);
  proto::ControlClient client({silent.address(), port_.address()});
  EXPECT_TRUE(client.Hello(HelloFrom("n2"), kTimeout).ok());
}

TEST_F(ControlServiceTest, P6_ACallToNobodyEndsUnavailableAndToASilentOneWithinItsTime) {
  EXPECT_EQ(proto::ControlClient({peer_port_.address()}).Hello(HelloFrom("n2"), kTimeout).status().code(),
            absl::StatusCode::kUnavailable);
  const Port silent(/*listening=*/true);
  EXPECT_EQ(proto::ControlClient({silent.address()}).Hello(HelloFrom("n2"), 300ms).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(ControlServiceTest, AClientFindsADaemonThatWasRestartedAtOnce) {
  proto::ControlClient client({port_.address()});
  ASSERT_TRUE(client.Hello(HelloFrom("n2"), kTimeout).ok());
  service_->Stop();
  ASSERT_FALSE(client.Hello(HelloFrom("n2"), kTimeout).ok());
  ASSERT_TRUE(service_->Start().ok());
  EXPECT_TRUE(client.Hello(HelloFrom("n2"), kTimeout).ok());
}

TEST_F(ControlServiceTest, HeartbeatsTellWhoIsReachableAndWhoIsSomebodyElse) {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<control::PeerStatus> seen;
  Config other;
  other.name = "n2";
  other.peers = {{"n1", {port_.address()}}, {"n3", {port_.address()}}};
  PeerWatch watch(other, 2, [&](const control::PeerStatus& peer) {
    const std::lock_guard lock(mutex);
    seen.push_back(peer);
    changed.notify_all();
  });
  watch.Start();
  std::unique_lock lock(mutex);
  ASSERT_TRUE(changed.wait_for(lock, 30s, [&seen] { return seen.size() == 2; }));
  lock.unlock();
  EXPECT_TRUE(watch.Peers()[0].reachable());
  EXPECT_GT(watch.Peers()[0].round_trip_ns(), 0);
  EXPECT_FALSE(watch.Peers()[1].reachable());
  EXPECT_THAT(watch.Peers()[1].reason(), HasSubstr("calls itself n1"));
  EXPECT_TRUE(watch.Ping("n1").ok());
  EXPECT_EQ(watch.Ping("n9").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace pmirror::server
