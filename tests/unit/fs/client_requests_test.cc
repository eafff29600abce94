// SPDX-License-Identifier: BSD-3-Clause
// What the registry of programs does for each request, and each refusal. The program is the test itself.
#include "fs/client_requests.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "tests/unit/fs/client_fixture.h"

namespace pmirror::fs {
namespace {

using local::RequestKind;
using Answer = LocalClient::Answer;

class ClientRequestsTest : public ProgramFixture {};

// --- backing files ---

TEST_F(ClientRequestsTest, TheDescriptorSaysWhatTheProgramMayDo) {
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

TEST_F(ClientRequestsTest, ALeaseForReadingBecomesOneForWriting) {
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

TEST_F(ClientRequestsTest, DescriptorsThatProveNothingAreRefused) {
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

TEST_F(ClientRequestsTest, TheBackingDescriptorOfAForkedChildIsAProofToo) {
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

// A file of the tree that nobody has looked up in this mount, as one that a program has mapped since an earlier one.
UniqueFd MakeUnknown(const TestVolume& volume, const std::string& path, FileId id) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  const uint64_t raw = Raw(id);
  EXPECT_EQ(::fsetxattr(fd.get(), kIdXattr, &raw, sizeof(raw), 0), 0) << path << volume.name();
  return fd;
}

TEST_F(ClientRequestsTest, P3_ABackingDescriptorOfAnEarlierMountIsAProofAsFarAsItsAccessModeGoes) {
  constexpr FileId kId{0x7000001};
  ASSERT_EQ(::mkdir((volume_.backing() + "/folder").c_str(), 0755), 0);
  const std::string path = volume_.backing() + "/folder/f";
  const UniqueFd writable = MakeUnknown(volume_, path, kId);
  files_.push_back(kId);
  const UniqueFd readable(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const Answer reader = client_->OpenBacking(readable.get(), 0, kId);
  EXPECT_EQ(reader.error(), 0) << reader.text();
  EXPECT_EQ(reader.reply.writable, 0U);
  ASSERT_EQ(::rename(path.c_str(), (volume_.backing() + "/moved").c_str()), 0);
  const Answer writer = client_->OpenBacking(writable.get(), 0, kId);
  EXPECT_EQ(writer.error(), 0) << writer.text();
  EXPECT_EQ(writer.reply.writable, 1U);
  EXPECT_EQ(client_->Mapped(kId, kEightPages).error(), 0);
  EXPECT_EQ(volume_.WritingMappersOf(kId), 1U);
}

TEST_F(ClientRequestsTest, P9_ABackingFileThatLostItsNameBetweenTwoMountsIsStale) {
  constexpr FileId kId{0x7000002};
  const UniqueFd fd = MakeUnknown(volume_, volume_.backing() + "/f", kId);
  ASSERT_EQ(::unlink((volume_.backing() + "/f").c_str()), 0);
  const Answer answer = client_->OpenBacking(fd.get(), 0, kId);
  EXPECT_EQ(answer.error(), ESTALE) << answer.text();
}

TEST_F(ClientRequestsTest, AFileBesideTheTreeGivesNoRightWhateverIdItCarries) {
  constexpr FileId kId{0x7000003};
  const UniqueFd beside = MakeUnknown(volume_, volume_.backing() + ".beside", kId);
  EXPECT_EQ(client_->OpenBacking(beside.get(), 0, kId).error(), ESTALE);
  ASSERT_TRUE(::mkdir((volume_.backing() + "/.pmirror").c_str(), 0700) == 0 || errno == EEXIST);
  const UniqueFd hidden = MakeUnknown(volume_, volume_.backing() + "/.pmirror/f", FileId{0x7000004});
  EXPECT_EQ(client_->OpenBacking(hidden.get(), 0, FileId{0x7000004}).error(), ESTALE);
}

TEST_F(ClientRequestsTest, AFileThatCarriesAnothersIdGivesNoRightToIt) {
  const FileId id = MakeFile("f", 1);
  const UniqueFd impostor(::open(volume_.backing().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  const uint64_t raw = Raw(id);
  ASSERT_EQ(::fsetxattr(impostor.get(), kIdXattr, &raw, sizeof(raw), 0), 0);
  EXPECT_EQ(client_->OpenBacking(impostor.get(), 0, id).error(), ENODEV);
  EXPECT_FALSE(volume_.IsDirect(id));
  EXPECT_EQ(client_->OpenSession(0).error(), 0);
  EXPECT_TRUE(volume_.TakeGranted().empty()) << "no session may write it";
}

TEST_F(ClientRequestsTest, AFileThatAPlainProgramHasOpenIsBusyAndTheAnswerNamesIt) {
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

TEST_F(ClientRequestsTest, AFileThatIsGoneIsStale) {
  const FileId id = MakeFile("f", 1);
  const Answer first = client_->OpenBacking(Open("f", O_RDWR).get());
  ASSERT_EQ(client_->CloseBacking(id).error(), 0);
  ASSERT_EQ(::unlink(volume_.At("f").c_str()), 0);
  EXPECT_EQ(client_->OpenBacking(first.descriptors.at(0).get(), 0, id).error(), ESTALE);
}

// --- mappings ---

TEST_F(ClientRequestsTest, MappingsAndUnmappingsThatMakeNoSenseAreRefused) {
  const FileId id = MakeOpened("f");
  EXPECT_EQ(client_->Mapped(FileId{12345}, kEightPages).error(), EINVAL);
  EXPECT_EQ(client_->Unmapped(FileId{12345}, kEightPages).error(), EINVAL);
  EXPECT_EQ(client_->CloseBacking(FileId{12345}).error(), EINVAL);
  for (const LocalClient::Where& where : {LocalClient::Where{1, kPage, 0},
                                          {kPage, 1, 0},
                                          {kPage, kPage, 1},
                                          {kPage, 0, 0},
                                          {UINT64_MAX - kPage + 1, 2 * kPage, 0},
                                          {kPage, kPage, UINT64_MAX - kPage + 1}}) {
    EXPECT_EQ(client_->Mapped(id, where).error(), EINVAL);
  }
  EXPECT_EQ(client_->Mapped(id, kEightPages, true, static_cast<Tracking>(3)).error(), EINVAL);
  EXPECT_EQ(client_->Unmapped(id, {1, kPage, 0}).error(), EINVAL);
  EXPECT_EQ(client_->Unmapped(id, kEightPages, {{UINT64_MAX, 2}}).error(), EINVAL);
  const Answer many = client_->Ask(RequestKind::kUnmapped, [&](local::Request& request) {
    request.file = Raw(id);
    request.extent_count = local::kMaxHandover + 1;
  });
  EXPECT_EQ(many.error(), EINVAL);
  EXPECT_NE(many.text(), "");
  EXPECT_EQ(registry_.MappingProcesses(0), 0U);
}

TEST_F(ClientRequestsTest, WhatIsHandedOverIsHeldAndWhatStaysMappedIsStillTaken) {
  const FileId id = MakeOpened("f");
  ASSERT_EQ(client_->Mapped(id, kEightPages).error(), 0);
  EXPECT_EQ(registry_.MappingProcesses(0), 1U);
  // From the middle, with a redo range that reaches beyond it.
  ASSERT_EQ(
      client_->Unmapped(id, {kEightPages.address + 2 * kPage, 2 * kPage, 2 * kPage}, {{kPage, 2 * kPage}})
          .error(),
      0);
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{kPage, 2 * kPage}}));
  EXPECT_EQ(Take(id, 8), (std::vector<Extent>{{0, 2 * kPage}, {4 * kPage, 4 * kPage}}));
  EndProgram();
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{0, 3 * kPage}, {4 * kPage, 4 * kPage}}))
      << "what was handed over clean is not held";
  EXPECT_EQ(Take(id, 8), std::vector<Extent>{});
}

TEST_F(ClientRequestsTest, AnAbandonedRangeIsHeldWhole) {
  const FileId id = MakeOpened("f");
  ASSERT_EQ(client_->Mapped(id, kEightPages).error(), 0);
  ASSERT_EQ(client_->Unmapped(id, {kEightPages.address, 2 * kPage, 0}, {}, /*abandoned=*/true).error(), 0);
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{0, 2 * kPage}}));
}

TEST_F(ClientRequestsTest, AMappingInTheWayWasUnmappedUnseenAndIsHeld) {
  const FileId id = MakeOpened("f");
  const FileId other = MakeOpened("other");
  ASSERT_EQ(client_->Mapped(id, kEightPages).error(), 0);
  ASSERT_EQ(client_->Mapped(other, {kEightPages.address + 6 * kPage, 4 * kPage, 0}).error(), 0);
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{6 * kPage, 2 * kPage}}));
  EXPECT_EQ(Take(id, 8), (std::vector<Extent>{{0, 6 * kPage}}));
  EXPECT_EQ(Take(other, 8), (std::vector<Extent>{{0, 4 * kPage}}));
}

TEST_F(ClientRequestsTest, WritingMappersAreCountedByProcess) {
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

TEST_F(ClientRequestsTest, ADirtyByteIsAtNoInstantNobodys) {
  const FileId id = MakeOpened("f");
  ASSERT_EQ(client_->Mapped(id, kEightPages).error(), 0);
  std::atomic<int> held_while_mapped{0};
  volume_.Locked([&] {
    volume_.on_hold = [&](FileId file) {
      held_while_mapped += registry_.StoresOf(0).Any(file, {0, 1}) ? 1 : 0;
    };
  });
  ASSERT_EQ(client_->Unmapped(id, {kEightPages.address, 4 * kPage, 0}, {{0, 10}}).error(), 0);
  EXPECT_EQ(held_while_mapped, 1);
  ASSERT_EQ(client_->Mapped(id, {kEightPages.address, 4 * kPage, 0}).error(), 0);
  EndProgram();
  EXPECT_GE(held_while_mapped, 2);
}

TEST_F(ClientRequestsTest, RedoTicketsOfAClosedFileAreHeld) {
  const FileId id = MakeOpened("f");
  tickets_.Put(3, TicketState::kRedo, 0, id, {100, 50});
  tickets_.Put(4, TicketState::kRedo, 1, id, {500, 50});
  EXPECT_EQ(Take(id, 8), (std::vector<Extent>{{100, 50}}));
  ASSERT_EQ(client_->CloseBacking(id).error(), 0);
  EXPECT_EQ(volume_.Held(id), (std::vector<Extent>{{100, 50}}));
  EXPECT_FALSE(volume_.IsDirect(id));
}

// --- sessions ---

TEST_F(ClientRequestsTest, ASessionMayWriteTheFilesOfItsProcessBeforeItIsKnown) {
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

TEST_F(ClientRequestsTest, AGrantThatFailsCutsTheSessionWhichIsResumedWithIt) {
  const Answer answer = client_->OpenSession(0);
  ASSERT_EQ(answer.error(), 0);
  volume_.Locked([&] { volume_.grant_error = ETIMEDOUT; });
  const FileId id = MakeOpened("f");
  char byte = 0;
  EXPECT_EQ(::recv(answer.descriptors.at(0).get(), &byte, 1, MSG_DONTWAIT), 0) << "cut";
  EXPECT_EQ(client_->OpenSession(0, answer.reply.session).error(), ETIMEDOUT);
  volume_.Locked([&] { volume_.grant_error = 0; });
  volume_.TakeGranted();
  const Answer resumed = client_->OpenSession(0, answer.reply.session);
  EXPECT_EQ(resumed.error(), 0) << resumed.text();
  EXPECT_EQ(resumed.reply.session, answer.reply.session);
  EXPECT_EQ(volume_.TakeGranted(),
            (std::vector<TestVolume::Granted>{{0, SessionId{answer.reply.session}, id}}));
}

TEST_F(ClientRequestsTest, Trap11SessionsOfOthersAndUnknownReplicasAreRefused) {
  EXPECT_EQ(client_->OpenSession(0, 4711).error(), EPERM);
  const Answer answer = client_->OpenSession(0);
  EXPECT_EQ(client_->OpenSession(1, answer.reply.session).error(), EPERM) << "it is of another replica";
  EXPECT_EQ(client_->OpenSession(2).error(), EINVAL);
  volume_.Locked([&] { volume_.open_session_error = ESHUTDOWN; });
  EXPECT_EQ(client_->OpenSession(0).error(), ESHUTDOWN);
}

TEST_F(ClientRequestsTest, TheOldestOfTooManySessionsIsEnded) {
  const Answer first = client_->OpenSession(0);
  for (size_t i = 0; i < ClientProcess::kMaxSessions; ++i) {
    ASSERT_EQ(client_->OpenSession(0).error(), 0);
  }
  EXPECT_EQ(volume_.Locked([&] { return volume_.ended; }),
            std::vector<SessionId>{SessionId{first.reply.session}});
}

// --- syncs ---

TEST_F(ClientRequestsTest, SyncsAndReportsReachTheVolume) {
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
  EXPECT_EQ(volume_.synced.at(0), (std::pair<FileId, Extent>(id, {10, 20})));
  EXPECT_EQ(volume_.synced.at(1), (std::pair<FileId, Extent>(id, {0, INT64_MAX})))
      << "length 0: the whole file";
  EXPECT_NE(volume_.last_asking, ProcessSerial::kNone);
  EXPECT_EQ(client_->Ask(RequestKind::kSyncVolume).error(), 0);
  EXPECT_EQ(volume_.volume_syncs, 1);
  volume_.Locked([&] { volume_.sync_error = EIO; });
  EXPECT_EQ(ask(10, 20), EIO);
  EXPECT_EQ(client_->Ask(RequestKind::kSyncVolume).error(), EIO);
  EXPECT_EQ(client_->Ask(RequestKind::kSyncOthers, [](local::Request& r) { r.file = 999; }).error(), EINVAL);
  const Answer reported = client_->Ask(RequestKind::kReport, [&](local::Request& request) {
    request.report = static_cast<uint32_t>(local::ReportKind::kSuspended);
    request.file = Raw(id);
    request.value = 3;
  });
  EXPECT_EQ(reported.error(), 0);
  EXPECT_EQ(volume_.last_report.pid, ::getpid());
  EXPECT_EQ(volume_.last_report.value, 3U);
}

TEST_F(ClientRequestsTest, ASyncThatWaitsHoldsUpNoOtherRequest) {
  const FileId id = MakeOpened("f");
  volume_.Locked([&] { volume_.hold_syncs = true; });
  const LocalClient second(socket());
  ASSERT_EQ(second.Hello().error(), 0);
  local::Request request;
  request.kind = RequestKind::kSyncOthers;
  request.file = Raw(id);
  request.wait_ns = 20'000'000'000;
  second.Send(request);
  ASSERT_TRUE(volume_.WaitFor([&] { return !volume_.synced.empty(); }));
  EXPECT_EQ(client_->Mapped(id, kEightPages).error(), 0);
  EXPECT_EQ(client_->OpenSession(0).error(), 0);
  EXPECT_EQ(Take(id, 8).size(), 1U);
  volume_.ReleaseSyncs();
  EXPECT_EQ(second.Receive().error(), 0);
}

}  // namespace
}  // namespace pmirror::fs
