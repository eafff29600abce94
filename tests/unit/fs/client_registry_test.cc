// SPDX-License-Identifier: BSD-3-Clause
// The registry of programs: who may connect, and what ends. What requests do is in client_requests_test.cc, programs that stop and die in client_program_test.cc.
#include "fs/client_registry.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "tests/unit/fs/client_fixture.h"

namespace pmirror::fs {
namespace {

using local::RequestKind;
using Answer = LocalClient::Answer;

class ClientRegistryTest : public ProgramFixture {};

// --- connections ---

TEST_F(ClientRegistryTest, HelloNamesTheVolumesAndPassesTheirPages) {
  const LocalClient second(socket());
  const Answer answer = second.Hello();
  ASSERT_EQ(answer.error(), 0) << answer.text();
  ASSERT_EQ(answer.reply.mount_count, 1U);
  EXPECT_EQ(answer.reply.mounts[0].device, volume_.mount_device());
  EXPECT_EQ(answer.reply.mounts[0].volume, volume_.uuid());
  EXPECT_STREQ(answer.reply.mounts[0].name, "v0");
  ASSERT_EQ(answer.descriptors.size(), 1U);
  struct stat info {};
  ::fstat(answer.descriptors[0].get(), &info);
  EXPECT_EQ(static_cast<size_t>(info.st_size), sizeof(VolumePage));
}

TEST_F(ClientRegistryTest, AnObserverIsToldOfEachChangeAndIsNoProgram) {
  EndProgram();
  const LocalClient observer(socket());
  const Answer answer = observer.Ask(RequestKind::kObserve);
  ASSERT_EQ(answer.error(), 0) << answer.text();
  ASSERT_EQ(answer.reply.mount_count, 1U);
  ASSERT_EQ(answer.descriptors.size(), 1U);
  EXPECT_FALSE(registry_.AnyAnnounced());
  const auto next = [&] {
    local::Event event;
    EXPECT_EQ(::recv(observer.fd(), &event, sizeof event, 0), static_cast<ssize_t>(sizeof event));
    return event;
  };
  const local::Event first = next();
  EXPECT_EQ(first.kind, local::EventKind::kState);
  EXPECT_EQ(first.members, 1U);
  volume_.page().SetMembers(0, 0);
  const local::Event lost = next();
  EXPECT_EQ(lost.kind, local::EventKind::kRedundancyLost);
  EXPECT_EQ(lost.replica, 0U);
  EXPECT_EQ(lost.members, 0U);
  EXPECT_EQ(lost.set_version, first.set_version + 1);
  volume_.page().SetMembers(0, 1);  // a joiner is not redundancy
  volume_.page().SetMembers(1, 0);
  EXPECT_EQ(next().kind, local::EventKind::kRedundancyRestored);
  volume_.page().SetState(VolumeState::kFenced);
  const local::Event fenced = next();
  EXPECT_EQ(fenced.kind, local::EventKind::kFenced);
  EXPECT_EQ(fenced.replica, kMaxReplicas);
  EXPECT_EQ(fenced.missed, 0U);
}

TEST_F(ClientRegistryTest, AnObserverThatDoesNotReadIsToldHowManyEventsItMissed) {
  const LocalClient observer(socket());
  ASSERT_EQ(observer.Ask(RequestKind::kObserve).error(), 0);
  constexpr uint64_t kChanges = 5000;
  for (uint64_t i = 0; i < kChanges; ++i) {
    volume_.page().SetMembers(static_cast<uint8_t>(i % 2), 0);
  }
  uint64_t told = 0;
  uint64_t closings = 0;
  local::Event event;
  while (event.kind != local::EventKind::kClosing) {
    const ssize_t got = ::recv(observer.fd(), &event, sizeof event, MSG_DONTWAIT);
    if (got < 0) {  // what was missed last is told with the next event that finds room
      ASSERT_EQ(errno, EAGAIN);
      // Only what is a change is told: the first may have been missed like the others.
      volume_.page().SetState(closings % 2 == 0 ? VolumeState::kClosing : VolumeState::kServing);
      ++closings;
      continue;
    }
    ASSERT_EQ(got, static_cast<ssize_t>(sizeof event));
    told += 1 + event.missed;
  }
  const uint64_t made = 1 + kChanges;  // the state at the beginning, and each change
  EXPECT_GT(told, made);
  EXPECT_LE(told, made + closings);
}

TEST_F(ClientRegistryTest, AnObserverEndsWithItsConnectionOrTheRegistry) {
  LocalClient gone(socket());
  ASSERT_EQ(gone.Ask(RequestKind::kObserve).error(), 0);
  gone.Close();
  const LocalClient talker(socket());
  ASSERT_EQ(talker.Ask(RequestKind::kObserve).error(), 0);
  talker.Send(local::Request());
  char record[sizeof(local::Reply)];
  while (::recv(talker.fd(), record, sizeof record, 0) > 0) {  // its first event, then the end
  }
  const LocalClient last(socket());
  ASSERT_EQ(last.Ask(RequestKind::kObserve).error(), 0);
  registry_.Stop();
  while (::recv(last.fd(), record, sizeof record, 0) > 0) {
  }
  SUCCEED() << "Stop() returned";
}

TEST_F(ClientRegistryTest, OnlyAProgramWithAMainConnectionIsAnnounced) {
  EXPECT_TRUE(registry_.IsAnnounced(::getpid()));
  EXPECT_TRUE(registry_.AnyAnnounced());
  EXPECT_FALSE(registry_.IsAnnounced(::getppid()));
  EndProgram();
  EXPECT_FALSE(registry_.AnyAnnounced());
  const LocalClient attached(socket());
  EXPECT_EQ(attached.Hello().error(), ESRCH);
  EXPECT_FALSE(registry_.AnyAnnounced());
}

TEST_F(ClientRegistryTest, AMainHelloNeedsATicketTableThatCannotShrink) {
  const LocalTickets unsealed(0);
  const LocalTickets small(F_SEAL_SHRINK, kPage);
  const UniqueFd file(::open(scratch_.path().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  for (const std::vector<int>& descriptors :
       {std::vector<int>{}, {unsealed.fd()}, {small.fd()}, {file.get()}, {tickets_.fd(), file.get()}}) {
    const LocalClient other(socket());
    const Answer answer = other.HelloMain(descriptors);
    EXPECT_EQ(answer.error(), EINVAL);
    EXPECT_NE(answer.text(), "");
  }
  EXPECT_TRUE(registry_.IsAnnounced(::getpid())) << "a refused hello ends nobody";
}

TEST_F(ClientRegistryTest, ASecondMainHelloOfAProcessEndsTheFirst) {
  const FileId id = MakeOpened("f");
  ASSERT_EQ(client_->Mapped(id, kEightPages).error(), 0);
  const LocalTickets other_tickets;
  const LocalClient other(socket());
  ASSERT_EQ(other.HelloMain({other_tickets.fd()}).error(), 0);
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{0, 8 * kPage}}));
  EXPECT_FALSE(client_->Receive().came) << "the connection of the first is cut";
  EXPECT_TRUE(registry_.IsAnnounced(::getpid()));
  EXPECT_EQ(other.CloseBacking(id).error(), EINVAL) << "the second has nothing of the first";
}

TEST_F(ClientRegistryTest, RecordsOfAnotherSizeOrVersionEndTheConnection) {
  local::Request wrong;
  wrong.kind = RequestKind::kHello;
  wrong.version = local::kVersion + 1;
  const LocalClient version(socket());
  version.Send(wrong);
  EXPECT_FALSE(version.Receive().came);
  wrong.version = local::kVersion;
  const LocalClient small(socket());
  small.SendBytes(&wrong, sizeof(wrong) - 8);
  EXPECT_FALSE(small.Receive().came);
  std::vector<char> bytes(sizeof(wrong) + 8);
  std::memcpy(bytes.data(), &wrong, sizeof(wrong));
  const LocalClient large(socket());
  large.SendBytes(bytes.data(), bytes.size());
  EXPECT_FALSE(large.Receive().came);
  const LocalClient crowded(socket());
  crowded.Send(wrong, {0, 0, 0});
  EXPECT_FALSE(crowded.Receive().came);
  EXPECT_EQ(events_.Count("program_connection_closed"), 4U);
}

TEST_F(ClientRegistryTest, RequestsOutOfPlaceAreRefusedAndTheConnectionGoesOn) {
  const LocalClient attached(socket());
  EXPECT_EQ(attached.CloseBacking(FileId{9}).error(), EPROTO) << "before the hello";
  EXPECT_EQ(attached.Hello().error(), 0);
  EXPECT_EQ(attached.Hello().error(), EINVAL) << "twice";
  EXPECT_EQ(attached.CloseBacking(FileId{9}).error(), EINVAL) << "not over the main connection";
  const Answer unknown = client_->Ask(static_cast<RequestKind>(77));
  EXPECT_EQ(unknown.error(), EINVAL);
  EXPECT_EQ(unknown.text(), "this daemon knows no request of kind 77");
  EXPECT_EQ(client_->Ask(RequestKind::kSyncVolume, [](local::Request& r) { r.volume = 1; }).error(), EINVAL);
  EXPECT_EQ(client_->Ask(RequestKind::kReport).error(), EINVAL);
}

TEST_F(ClientRegistryTest, TooManyConnectionsAreRefusedAndRoomComesBack) {
  std::vector<std::unique_ptr<LocalClient>> clients;
  for (int i = 0; i < 15; ++i) {
    clients.push_back(std::make_unique<LocalClient>(socket()));
    ASSERT_EQ(clients.back()->Hello().error(), 0);
  }
  const LocalClient one_more(socket());
  const Answer refused = one_more.Hello();
  EXPECT_EQ(refused.error(), EAGAIN);
  EXPECT_NE(refused.text(), "");
  clients.pop_back();
  const Deadline deadline = Deadline::After(std::chrono::seconds(20));
  int error = EAGAIN;
  while (error == EAGAIN && !deadline.Expired()) {
    error = LocalClient(socket()).Hello().error();
  }
  EXPECT_EQ(error, 0);
}

// --- the end of a program, and of the registry ---

TEST_F(ClientRegistryTest, TheEndOfAProgramEndsItsSessionsAndConnectionsAndKeepsItsCount) {
  const FileId id = MakeOpened("f");
  tickets_->acknowledged_syncs[0] = 41;
  const LocalClient second(socket());
  ASSERT_EQ(second.Hello().error(), 0);
  const Answer session = second.OpenSession(0);
  EXPECT_EQ(registry_.AcknowledgedSyncs(0), 41U);
  ASSERT_EQ(client_->Mapped(id, kEightPages).error(), 0);
  tickets_.Put(0, TicketState::kOpen, 0, id, {20 * kPage, 5});
  EndProgram();
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{0, 8 * kPage}, {20 * kPage, 5}}));
  EXPECT_EQ(volume_.WritingMappersOf(id), 0U);
  EXPECT_FALSE(second.Receive().came);
  char byte = 0;
  EXPECT_EQ(::recv(session.descriptors.at(0).get(), &byte, 1, 0), 0);
  EXPECT_TRUE(volume_.WaitFor([&] { return volume_.ended.size() == 1; }));
  EXPECT_EQ(registry_.AcknowledgedSyncs(0), 41U);
  EXPECT_EQ(registry_.MappingProcesses(0), 0U);
}

TEST_F(ClientRegistryTest, StopEndsProgramsAndMayComeTwice) {
  const FileId id = MakeOpened("f");
  ASSERT_EQ(client_->Mapped(id, kEightPages).error(), 0);
  registry_.Stop();
  EXPECT_FALSE(client_->Receive().came);
  EXPECT_FALSE(volume_.IsDirect(id));
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{0, 8 * kPage}}));
  struct stat info {};
  EXPECT_NE(::stat(socket().c_str(), &info), 0);
  registry_.Stop();
  EXPECT_TRUE(registry_.Start(socket()).ok());
}

TEST_F(ClientRegistryTest, TheSocketIsForEverybodyAndItsPathIsChecked) {
  EXPECT_EQ(TestVolume::StatusOf(socket()).st_mode & 0777, 0666U);
  ClientRegistry other(events_);
  EXPECT_EQ(other.Start(socket()).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(other.Start(scratch_.path() + "/no/socket").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(other.Start(std::string(200, 'x')).code(), absl::StatusCode::kInvalidArgument);
  const std::string file = scratch_.path() + "/file";
  std::ofstream(file) << "mine";
  EXPECT_EQ(other.Start(file).code(), absl::StatusCode::kAlreadyExists);
  const std::string stale = scratch_.path() + "/stale";
  {
    const UniqueFd left(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, stale.c_str(), sizeof(address.sun_path) - 1);
    ASSERT_EQ(::bind(left.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  EXPECT_TRUE(other.Start(stale).ok());
  EXPECT_EQ(other.Start(stale).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(other.Add(volume_).value(), 0u) << "a volume may come while programs are served";
}

TEST_F(ClientRegistryTest, ANodeMountsABoundedNumberOfVolumes) {
  ClientRegistry other(events_);
  for (size_t i = 0; i < local::kMaxVolumes; ++i) {
    EXPECT_EQ(other.Add(volume_).value(), i);
  }
  EXPECT_EQ(other.Add(volume_).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace pmirror::fs
