// SPDX-License-Identifier: BSD-3-Clause
// The registry of programs: who may connect, what it gives to whom, and each refusal. The programs here are this very process; those that stop and die are
// in client_program_test.cc.
#include "fs/client_registry.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <thread>

#include "tests/unit/fs/client_fixture.h"

namespace pmirror::fs {
namespace {

using local::RequestKind;
using Answer = LocalClient::Answer;

// One registered program.
class ClientRegistryTest : public ClientFixture {
 protected:
  void SetUp() override {
    ClientFixture::SetUp();
    client_.emplace(socket());
    ASSERT_EQ(client_->HelloMain({tickets_.fd()}).error(), 0);
  }

  UniqueFd Open(const std::string& name, int flags) const {
    UniqueFd fd(::open(volume_.At(name).c_str(), flags | O_CLOEXEC));
    EXPECT_TRUE(fd.valid()) << name;
    return fd;
  }
  // A file of eight pages with its backing file open for writing.
  FileId MakeOpened(const std::string& name) {
    const FileId id = MakeFile(name, 8);
    EXPECT_EQ(client_->OpenBacking(Open(name, O_RDWR).get()).error(), 0);
    return id;
  }
  // The program is over as far as the daemon knows.
  void EndProgram() {
    client_->Close();
    ASSERT_TRUE(EventuallyGone());
  }
  // What it owed has been handed on then.
  bool EventuallyGone() const {
    const Deadline deadline = Deadline::After(std::chrono::seconds(20));
    while (registry_.AnyAnnounced() && !deadline.Expired()) {
      std::this_thread::yield();
    }
    return !registry_.AnyAnnounced();
  }

  LocalTickets tickets_;
  std::optional<LocalClient> client_;
};

constexpr LocalClient::Where kAll{.address = 1 << 20, .length = 8 * kPage};

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
  ASSERT_EQ(client_->Mapped(id, kAll).error(), 0);
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
  EXPECT_EQ(events_.Count("a program's connection was closed"), 4U);
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

// --- backing files ---

TEST_F(ClientRegistryTest, TheDescriptorSaysWhatTheProgramMayDo) {
  const FileId id = MakeFile("f", 3);
  const Answer writing = client_->OpenBacking(Open("f", O_RDWR).get());
  ASSERT_EQ(writing.error(), 0) << writing.text();
  EXPECT_EQ(writing.reply.file, Raw(id));
  EXPECT_EQ(writing.reply.size, 3 * kPage);
  EXPECT_EQ(writing.reply.slot, 7U);
  EXPECT_EQ(writing.reply.writable, 1U);
  ASSERT_EQ(writing.descriptors.size(), 2U);
  struct stat backing {};
  ::fstat(writing.descriptors[0].get(), &backing);
  EXPECT_EQ(backing.st_dev, volume_.backing_device());
  EXPECT_EQ(::fcntl(writing.descriptors[0].get(), F_GETFL) & O_ACCMODE, O_RDWR);
  EXPECT_TRUE(volume_.IsDirect(id));

  const Answer reading = client_->OpenBacking(Open("f", O_RDONLY).get());
  ASSERT_EQ(reading.error(), 0) << reading.text();
  EXPECT_EQ(reading.reply.writable, 0U);
  ASSERT_EQ(reading.descriptors.size(), 1U) << "no order page";
  EXPECT_EQ(::fcntl(reading.descriptors[0].get(), F_GETFL) & O_ACCMODE, O_RDONLY)
      << "not more than the descriptor that was passed, although the process has more";
}

TEST_F(ClientRegistryTest, ALeaseForReadingBecomesOneForWriting) {
  const FileId id = MakeFile("f", 1);
  ASSERT_EQ(client_->OpenBacking(Open("f", O_RDONLY).get()).error(), 0);
  ASSERT_EQ(client_->Mapped(id, {.address = kPage, .length = kPage}, /*writable=*/true).error(), EINVAL);
  ASSERT_EQ(client_->Mapped(id, {.address = kPage, .length = kPage}, /*writable=*/false).error(), 0);
  EXPECT_EQ(client_->OpenBacking(Open("f", O_RDWR).get()).reply.writable, 1U);
  ASSERT_EQ(client_->Mapped(id, {.address = 4 * kPage, .length = kPage}, /*writable=*/true).error(), 0);
  ASSERT_EQ(client_->CloseBacking(id).error(), 0);
  EXPECT_TRUE(volume_.IsDirect(id)) << "its mappings hold it";
  ASSERT_EQ(client_->Unmapped(id, {.address = 0, .length = 8 * kPage}).error(), 0);
  EXPECT_FALSE(volume_.IsDirect(id));
}

TEST_F(ClientRegistryTest, DescriptorsThatProveNothingAreRefused) {
  MakeFile("f", 1);
  EXPECT_EQ(client_->OpenBacking(Open("f", O_PATH).get()).error(), EBADF);
  EXPECT_EQ(client_->OpenBacking(Open("f", O_WRONLY).get()).error(), EACCES);
  EXPECT_EQ(client_->Ask(RequestKind::kOpenBacking).error(), EBADF);
  EXPECT_EQ(client_->OpenBacking(tickets_.fd()).error(), ENODEV);
  EXPECT_EQ(client_->OpenBacking(Open("", O_RDONLY | O_DIRECTORY).get()).error(), ENODEV);
  const UniqueFd private_file(::open(volume_.backing().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  const Answer answer = client_->OpenBacking(private_file.get());
  EXPECT_EQ(answer.error(), ENODEV) << "on the backing file system, but without an id";
  EXPECT_NE(answer.text(), "");
}

TEST_F(ClientRegistryTest, TheBackingDescriptorOfAForkedChildIsAProofToo) {
  const FileId id = MakeFile("f", 1);
  MakeFile("other", 1);
  const Answer first = client_->OpenBacking(Open("f", O_RDWR).get());
  const int backing = first.descriptors.at(0).get();
  const Answer again = client_->OpenBacking(backing, 0, id);
  EXPECT_EQ(again.error(), 0) << again.text();
  EXPECT_EQ(again.reply.file, Raw(id));
  EXPECT_EQ(client_->OpenBacking(backing).error(), 0);
  EXPECT_EQ(client_->OpenBacking(backing, 0, volume_.IdOf("other")).error(), ENODEV);
}

TEST_F(ClientRegistryTest, AFileThatCarriesAnothersIdGivesNoRightToIt) {
  const FileId id = MakeFile("f", 1);
  const UniqueFd impostor(::open(volume_.backing().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  const uint64_t raw = Raw(id);
  ASSERT_EQ(::fsetxattr(impostor.get(), kIdXattr, &raw, sizeof(raw), 0), 0);
  EXPECT_EQ(client_->OpenBacking(impostor.get(), 0, id).error(), ENODEV);
  EXPECT_FALSE(volume_.IsDirect(id));
  EXPECT_EQ(client_->OpenSession(0).error(), 0);
  EXPECT_TRUE(volume_.TakeGranted().empty()) << "no session may write it";
}

TEST_F(ClientRegistryTest, AFileThatAPlainProgramHasOpenIsBusyAndTheAnswerNamesIt) {
  EndProgram();
  MakeFile("f", 1);
  UniqueFd plain = Open("f", O_RDWR);
  const LocalClient program(socket());
  ASSERT_EQ(program.HelloMain({tickets_.fd()}).error(), 0);
  const Answer answer = program.OpenBacking(plain.get());
  EXPECT_EQ(answer.error(), EBUSY);
  EXPECT_EQ(answer.reply.holder, ::getpid());
  EXPECT_NE(answer.text().find(std::to_string(::getpid())), std::string::npos) << answer.text();
  EXPECT_NE(answer.text().find("pmirror run"), std::string::npos) << answer.text();
  const UniqueFd mine = Open("f", O_RDWR);
  plain.Reset();
  EXPECT_EQ(program.OpenBacking(mine.get()).error(), 0) << "a close under way is waited for";
}

TEST_F(ClientRegistryTest, AFileThatIsGoneIsStale) {
  const FileId id = MakeFile("f", 1);
  const Answer first = client_->OpenBacking(Open("f", O_RDWR).get());
  ASSERT_EQ(client_->CloseBacking(id).error(), 0);
  ASSERT_EQ(::unlink(volume_.At("f").c_str()), 0);
  EXPECT_EQ(client_->OpenBacking(first.descriptors.at(0).get(), 0, id).error(), ESTALE);
}

// --- mappings ---

TEST_F(ClientRegistryTest, MappingsAndUnmappingsThatMakeNoSenseAreRefused) {
  const FileId id = MakeOpened("f");
  EXPECT_EQ(client_->Mapped(FileId{12345}, kAll).error(), EINVAL);
  EXPECT_EQ(client_->Unmapped(FileId{12345}, kAll).error(), EINVAL);
  EXPECT_EQ(client_->CloseBacking(FileId{12345}).error(), EINVAL);
  for (const LocalClient::Where& where : {LocalClient::Where{1, kPage, 0},
                                          {kPage, 1, 0},
                                          {kPage, kPage, 1},
                                          {kPage, 0, 0},
                                          {UINT64_MAX - kPage + 1, 2 * kPage, 0},
                                          {kPage, kPage, UINT64_MAX - kPage + 1}}) {
    EXPECT_EQ(client_->Mapped(id, where).error(), EINVAL);
  }
  EXPECT_EQ(client_->Mapped(id, kAll, true, static_cast<Tracking>(3)).error(), EINVAL);
  EXPECT_EQ(client_->Unmapped(id, {1, kPage, 0}).error(), EINVAL);
  EXPECT_EQ(client_->Unmapped(id, kAll, {{UINT64_MAX, 2}}).error(), EINVAL);
  const Answer many = client_->Ask(RequestKind::kUnmapped, [&](local::Request& request) {
    request.file = Raw(id);
    request.extent_count = local::kMaxHandover + 1;
  });
  EXPECT_EQ(many.error(), EINVAL);
  EXPECT_NE(many.text(), "");
  EXPECT_EQ(registry_.MappingProcesses(0), 0U);
}

TEST_F(ClientRegistryTest, WhatIsHandedOverIsHeldAndWhatStaysMappedIsStillTaken) {
  const FileId id = MakeOpened("f");
  ASSERT_EQ(client_->Mapped(id, kAll).error(), 0);
  EXPECT_EQ(registry_.MappingProcesses(0), 1U);
  // From the middle, with a redo range that reaches beyond it.
  ASSERT_EQ(
      client_->Unmapped(id, {kAll.address + 2 * kPage, 2 * kPage, 2 * kPage}, {{kPage, 2 * kPage}}).error(),
      0);
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{kPage, 2 * kPage}}));
  EXPECT_EQ(Take(id, 8), (std::vector<Extent>{{0, 2 * kPage}, {4 * kPage, 4 * kPage}}));
  EndProgram();
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{0, 3 * kPage}, {4 * kPage, 4 * kPage}}))
      << "what was handed over clean is not held";
  EXPECT_EQ(Take(id, 8), std::vector<Extent>{});
}

TEST_F(ClientRegistryTest, AnAbandonedRangeIsHeldWhole) {
  const FileId id = MakeOpened("f");
  ASSERT_EQ(client_->Mapped(id, kAll).error(), 0);
  ASSERT_EQ(client_->Unmapped(id, {kAll.address, 2 * kPage, 0}, {}, /*abandoned=*/true).error(), 0);
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{0, 2 * kPage}}));
}

TEST_F(ClientRegistryTest, AMappingInTheWayWasUnmappedUnseenAndIsHeld) {
  const FileId id = MakeOpened("f");
  const FileId other = MakeOpened("other");
  ASSERT_EQ(client_->Mapped(id, kAll).error(), 0);
  ASSERT_EQ(client_->Mapped(other, {kAll.address + 6 * kPage, 4 * kPage, 0}).error(), 0);
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{6 * kPage, 2 * kPage}}));
  EXPECT_EQ(Take(id, 8), (std::vector<Extent>{{0, 6 * kPage}}));
  EXPECT_EQ(Take(other, 8), (std::vector<Extent>{{0, 4 * kPage}}));
}

TEST_F(ClientRegistryTest, WritingMappersAreCountedByProcess) {
  const FileId id = MakeOpened("f");
  ASSERT_EQ(client_->Mapped(id, {kPage, kPage, 0}, /*writable=*/false).error(), 0);
  EXPECT_EQ(volume_.WritingMappersOf(id), 0U);
  ASSERT_EQ(client_->Mapped(id, {4 * kPage, kPage, 0}).error(), 0);
  ASSERT_EQ(client_->Mapped(id, {6 * kPage, kPage, 0}).error(), 0);
  EXPECT_EQ(volume_.WritingMappersOf(id), 1U);
  ASSERT_EQ(client_->Unmapped(id, {4 * kPage, kPage, 0}).error(), 0);
  EXPECT_EQ(volume_.WritingMappersOf(id), 1U);
  ASSERT_EQ(client_->Unmapped(id, {6 * kPage, kPage, 0}).error(), 0);
  EXPECT_EQ(volume_.WritingMappersOf(id), 0U);
}

TEST_F(ClientRegistryTest, ADirtyByteIsAtNoInstantNobodys) {
  const FileId id = MakeOpened("f");
  ASSERT_EQ(client_->Mapped(id, kAll).error(), 0);
  std::atomic<int> held_while_mapped{0};
  volume_.Locked([&] {
    volume_.on_hold_ = [&](FileId file) {
      held_while_mapped += registry_.StoresOf(0).Any(file, {0, 1}) ? 1 : 0;
    };
  });
  ASSERT_EQ(client_->Unmapped(id, {kAll.address, 4 * kPage, 0}, {{0, 10}}).error(), 0);
  EXPECT_EQ(held_while_mapped, 1);
  ASSERT_EQ(client_->Mapped(id, {kAll.address, 4 * kPage, 0}).error(), 0);
  EndProgram();
  EXPECT_GE(held_while_mapped, 2);
}

TEST_F(ClientRegistryTest, RedoTicketsOfAClosedFileAreHeld) {
  const FileId id = MakeOpened("f");
  tickets_.Put(3, TicketState::kRedo, 0, id, {100, 50});
  tickets_.Put(4, TicketState::kRedo, 1, id, {500, 50});
  EXPECT_EQ(Take(id, 8), (std::vector<Extent>{{100, 50}}));
  ASSERT_EQ(client_->CloseBacking(id).error(), 0);
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{100, 50}}));
  EXPECT_FALSE(volume_.IsDirect(id));
}

// --- sessions ---

TEST_F(ClientRegistryTest, ASessionMayWriteTheFilesOfItsProcessBeforeItIsKnown) {
  const FileId id = MakeOpened("f");
  const FileId read_only = MakeFile("r", 1);
  ASSERT_EQ(client_->OpenBacking(Open("r", O_RDONLY).get()).error(), 0);
  const LocalClient second(socket());
  ASSERT_EQ(second.Hello().error(), 0);
  const Answer answer = second.OpenSession(1);
  ASSERT_EQ(answer.error(), 0) << answer.text();
  EXPECT_EQ(answer.reply.received_sequence, 5U);
  EXPECT_EQ(answer.reply.credit_limit, 99U);
  ASSERT_EQ(answer.descriptors.size(), 1U);
  const SessionId session{answer.reply.session};
  EXPECT_EQ(volume_.TakeGranted(), (std::vector<TestVolume::Granted>{{1, session, id}}));
  ASSERT_EQ(client_->OpenBacking(Open("r", O_RDWR).get()).error(), 0);
  EXPECT_EQ(volume_.TakeGranted(), (std::vector<TestVolume::Granted>{{1, session, read_only}}));
  ASSERT_EQ(client_->OpenBacking(Open("r", O_RDWR).get()).error(), 0);
  EXPECT_TRUE(volume_.TakeGranted().empty()) << "once is enough";
}

TEST_F(ClientRegistryTest, AGrantThatFailsCutsTheSessionWhichIsResumedWithIt) {
  const Answer answer = client_->OpenSession(0);
  ASSERT_EQ(answer.error(), 0);
  volume_.Locked([&] { volume_.grant_error_ = ETIMEDOUT; });
  const FileId id = MakeOpened("f");
  char byte = 0;
  EXPECT_EQ(::recv(answer.descriptors.at(0).get(), &byte, 1, MSG_DONTWAIT), 0) << "cut";
  EXPECT_EQ(client_->OpenSession(0, answer.reply.session).error(), ETIMEDOUT);
  volume_.Locked([&] { volume_.grant_error_ = 0; });
  volume_.TakeGranted();
  const Answer resumed = client_->OpenSession(0, answer.reply.session);
  EXPECT_EQ(resumed.error(), 0) << resumed.text();
  EXPECT_EQ(resumed.reply.session, answer.reply.session);
  EXPECT_EQ(volume_.TakeGranted(),
            (std::vector<TestVolume::Granted>{{0, SessionId{answer.reply.session}, id}}));
}

TEST_F(ClientRegistryTest, Trap11SessionsOfOthersAndUnknownReplicasAreRefused) {
  EXPECT_EQ(client_->OpenSession(0, 4711).error(), EPERM);
  const Answer answer = client_->OpenSession(0);
  EXPECT_EQ(client_->OpenSession(1, answer.reply.session).error(), EPERM) << "it is of another replica";
  EXPECT_EQ(client_->OpenSession(2).error(), EINVAL);
  volume_.Locked([&] { volume_.open_session_error_ = ESHUTDOWN; });
  EXPECT_EQ(client_->OpenSession(0).error(), ESHUTDOWN);
}

TEST_F(ClientRegistryTest, TheOldestOfTooManySessionsIsEnded) {
  const Answer first = client_->OpenSession(0);
  for (size_t i = 0; i < ClientProcess::kMaxSessions; ++i) {
    ASSERT_EQ(client_->OpenSession(0).error(), 0);
  }
  EXPECT_EQ(volume_.Locked([&] { return volume_.ended_; }),
            std::vector<SessionId>{SessionId{first.reply.session}});
}

// --- syncs ---

TEST_F(ClientRegistryTest, SyncsAndReportsReachTheVolume) {
  const FileId id = MakeOpened("f");
  const auto ask = [&](uint64_t offset, uint64_t length) {
    return client_
        ->Ask(RequestKind::kSyncOthers,
              [&](local::Request& request) {
                request.file = Raw(id);
                request.offset = offset;
                request.length = length;
              })
        .error();
  };
  EXPECT_EQ(ask(10, 20), 0);
  EXPECT_EQ(ask(10, 0), 0);
  EXPECT_EQ(volume_.synced_.at(0), (std::pair<FileId, Extent>(id, {10, 20})));
  EXPECT_EQ(volume_.synced_.at(1), (std::pair<FileId, Extent>(id, {0, INT64_MAX})))
      << "length 0: the whole file";
  EXPECT_NE(volume_.asking_, ProcessSerial::kNone);
  EXPECT_EQ(client_->Ask(RequestKind::kSyncVolume).error(), 0);
  EXPECT_EQ(volume_.volume_syncs_, 1);
  volume_.Locked([&] { volume_.sync_error_ = EIO; });
  EXPECT_EQ(ask(10, 20), EIO);
  EXPECT_EQ(client_->Ask(RequestKind::kSyncVolume).error(), EIO);
  EXPECT_EQ(client_->Ask(RequestKind::kSyncOthers, [](local::Request& r) { r.file = 999; }).error(), EINVAL);
  const Answer reported = client_->Ask(RequestKind::kReport, [&](local::Request& request) {
    request.report = static_cast<uint32_t>(local::ReportKind::kSuspended);
    request.file = Raw(id);
    request.value = 3;
  });
  EXPECT_EQ(reported.error(), 0);
  EXPECT_EQ(volume_.last_report_.pid, ::getpid());
  EXPECT_EQ(volume_.last_report_.value, 3U);
}

TEST_F(ClientRegistryTest, ASyncThatWaitsHoldsUpNoOtherRequest) {
  const FileId id = MakeOpened("f");
  volume_.Locked([&] { volume_.hold_syncs_ = true; });
  const LocalClient second(socket());
  ASSERT_EQ(second.Hello().error(), 0);
  local::Request request;
  request.kind = RequestKind::kSyncOthers;
  request.file = Raw(id);
  request.wait_ns = 20'000'000'000;
  second.Send(request);
  ASSERT_TRUE(volume_.WaitFor([&] { return !volume_.synced_.empty(); }));
  EXPECT_EQ(client_->Mapped(id, kAll).error(), 0);
  EXPECT_EQ(client_->OpenSession(0).error(), 0);
  EXPECT_EQ(Take(id, 8).size(), 1U);
  volume_.ReleaseSyncs();
  EXPECT_EQ(second.Receive().error(), 0);
}

// --- the end of a program, and of the registry ---

TEST_F(ClientRegistryTest, TheEndOfAProgramEndsItsSessionsAndConnectionsAndKeepsItsCount) {
  const FileId id = MakeOpened("f");
  tickets_->acknowledged_syncs[0] = 41;
  const LocalClient second(socket());
  ASSERT_EQ(second.Hello().error(), 0);
  const Answer session = second.OpenSession(0);
  EXPECT_EQ(registry_.AcknowledgedSyncs(0), 41U);
  ASSERT_EQ(client_->Mapped(id, kAll).error(), 0);
  tickets_.Put(0, TicketState::kOpen, 0, id, {20 * kPage, 5});
  EndProgram();
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{0, 8 * kPage}, {20 * kPage, 5}}));
  EXPECT_EQ(volume_.WritingMappersOf(id), 0U);
  EXPECT_FALSE(second.Receive().came);
  char byte = 0;
  EXPECT_EQ(::recv(session.descriptors.at(0).get(), &byte, 1, 0), 0);
  EXPECT_TRUE(volume_.WaitFor([&] { return volume_.ended_.size() == 1; }));
  EXPECT_EQ(registry_.AcknowledgedSyncs(0), 41U);
  EXPECT_EQ(registry_.MappingProcesses(0), 0U);
}

TEST_F(ClientRegistryTest, StopEndsProgramsAndMayComeTwice) {
  const FileId id = MakeOpened("f");
  ASSERT_EQ(client_->Mapped(id, kAll).error(), 0);
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
  EXPECT_EQ(other.Add(volume_).status().code(), absl::StatusCode::kFailedPrecondition);
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
