// SPDX-License-Identifier: BSD-3-Clause
// Programs that are stopped, killed, or that leave children behind, in front of the registry: a forked child connects, maps a file with write tracking, and stores.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <optional>

#include "replication/write_tracker.h"
#include "tests/unit/fs/client_fixture.h"

namespace pmirror::fs {
namespace {

constexpr size_t kPages = 32;

// What a child does; everything in it runs in the child.
class Program {
 public:
  Program(const std::string& socket, const std::string& path) : client_(socket) {
    const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    Check(client_.HelloMain({tickets.fd(), pagemap.get()}).error() == 0);
    const UniqueFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    const LocalClient::Answer opened = client_.OpenBacking(file.get());
    Check(opened.error() == 0);
    id = FileId{opened.reply.file};
    void* address = ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED,
                           opened.descriptors.at(0).get(), 0);
    Check(address != MAP_FAILED);
    map = static_cast<char*>(address);
    const auto start = reinterpret_cast<uintptr_t>(map);
    Result<WriteTracker> opened_tracker = WriteTracker::Open();
    Check(opened_tracker.ok());
    tracker_ = std::move(opened_tracker).value();
    Check(tracker_.Register(start, kPages * kPage, Tracking::kWritten).ok());
    Check(ProtectAll(pagemap.get(), Tracking::kWritten, start, start + kPages * kPage).ok());
    Check(client_.Mapped(id, where(), true, Tracking::kWritten).error() == 0);
  }

  static void Check(bool good) {
    if (!good) {
      ::_exit(9);
    }
  }
  LocalClient::Where where() const { return {reinterpret_cast<uintptr_t>(map), kPages * kPage, 0}; }
  const LocalClient& client() const { return client_; }
  static void Stop() { ::raise(SIGSTOP); }

  LocalTickets tickets;
  FileId id{};
  char* map = nullptr;

 private:
  LocalClient client_;
  WriteTracker tracker_;
};

class ClientProgramTest : public ClientFixture {
 protected:
  void SetUp() override {
    if (!WriteTracker::Open().ok()) {
      GTEST_SKIP() << "this kernel does not track";
    }
    ClientFixture::SetUp();
    file_ = MakeFile("f", kPages);
  }
  void TearDown() override {
    for (const pid_t child : children_) {
      ::kill(child, SIGKILL);
      ::waitpid(child, nullptr, 0);
    }
    ClientFixture::TearDown();
  }

  // Runs the program until it stops itself.
  pid_t Start(const std::function<void(Program&)>& body) {
    const pid_t child = ::fork();
    if (child == 0) {
      Program program(socket(), volume_.At("f"));
      body(program);
      ::_exit(0);
    }
    children_.push_back(child);
    ExpectStopped(child);
    return child;
  }
  static void ExpectStopped(pid_t child) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
    ASSERT_TRUE(WIFSTOPPED(status)) << "the child failed: " << status;
  }
  void Kill(pid_t child) {
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    std::erase(children_, child);
  }

  FileId file_{};
  std::vector<pid_t> children_;
};

using Extents = std::vector<Extent>;

TEST_F(ClientProgramTest, Trap4StoresOfAStoppedProgramAreTaken) {
  const pid_t child = Start([](Program& program) {
    program.map[3 * kPage] = 'x';
    program.Stop();
    program.map[9 * kPage] = 'x';
    program.Stop();
  });
  EXPECT_EQ(Take(file_, kPages), (Extents{{3 * kPage, kPage}}));
  EXPECT_FALSE(registry_.StoresOf(0).Any(file_, {0, kPages * kPage}));
  ::kill(child, SIGCONT);
  ExpectStopped(child);
  EXPECT_TRUE(registry_.StoresOf(0).Any(file_, {0, kPages * kPage}));
  EXPECT_EQ(Take(file_, kPages), (Extents{{9 * kPage, kPage}}));
}

TEST_F(ClientProgramTest, Trap4WhatAStoppedProgramWasCapturingIsTaken) {
  Start([](Program& program) {
    program.map[3 * kPage] = 'x';
    program.tickets.Put(0, TicketState::kOpen, 0, program.id, {3 * kPage, kPage});
    const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    const uintptr_t start = program.where().address;
    Program::Check(ProtectAll(pagemap.get(), Tracking::kWritten, start, start + kPages * kPage).ok());
    program.tickets.Put(1, TicketState::kRedo, 0, program.id, {7 * kPage, 8});
    program.Stop();
  });
  EXPECT_EQ(Take(file_, kPages), (Extents{{3 * kPage, kPage}, {7 * kPage, 8}}));
}

TEST_F(ClientProgramTest, Trap7AKilledProgramsMappingIsHeldWhole) {
  const pid_t child = Start([](Program& program) {
    program.map[3 * kPage] = 'x';
    program.tickets->acknowledged_syncs[0] = 12;
    program.Stop();
  });
  EXPECT_EQ(volume_.WritingMappersOf(file_), 1U);
  Kill(child);
  EXPECT_TRUE(volume_.WaitFor([&] { return volume_.writing_mappers[file_] == 0; }));
  EXPECT_EQ(volume_.Held(file_), (Extents{{0, kPages * kPage}}));
  EXPECT_EQ(registry_.AcknowledgedSyncs(0), 12U);
}

TEST_F(ClientProgramTest, Trap7WhatAProgramHandedOverIsNotHeldAgain) {
  const pid_t child = Start([](Program& program) {
    LocalClient::Where half = program.where();
    half.length /= 2;
    Program::Check(program.client().Unmapped(program.id, half, {{kPage, 10}}).error() == 0);
    program.Stop();
  });
  Kill(child);
  EXPECT_TRUE(volume_.WaitFor([&] { return volume_.writing_mappers[file_] == 0; }));
  EXPECT_EQ(volume_.Held(file_), (Extents{{kPage, 10}, {kPages / 2 * kPage, kPages / 2 * kPage}}));
}

// The child of a program (it forked without the library's knowledge) keeps the main connection open.
TEST_F(ClientProgramTest, Trap7AConnectionThatOutlivesItsProgramDoesNotHideItsEnd) {
  int pipe_ends[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  const pid_t child = Start([&](Program& program) {
    program.map[0] = 'x';
    if (::fork() == 0) {  // ends when the test closes its end of the pipe
      ::close(pipe_ends[1]);
      char byte = 0;
      ::_exit(static_cast<int>(::read(pipe_ends[0], &byte, 1)));
    }
    program.Stop();
  });
  Kill(child);
  EXPECT_TRUE(volume_.WaitFor([&] { return volume_.writing_mappers[file_] == 0; }));
  EXPECT_EQ(volume_.Held(file_), (Extents{{0, kPages * kPage}}));
  ::close(pipe_ends[0]);
  ::close(pipe_ends[1]);
}

// A dead program's page table says nothing.
TEST_F(ClientProgramTest, Trap7AKilledProgramCountsAsAllDirtyBeforeItsEndIsNoticed) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::raise(SIGSTOP);
    ::_exit(0);
  }
  children_.push_back(child);
  ExpectStopped(child);
  const LocalTickets tickets;
  const auto process = std::make_shared<ClientProcess>(
      ClientProcess::Identity{.serial = ProcessSerial{1}, .pid = child, .uid = 0, .command = "child"},
      UniqueFd(::open(("/proc/" + std::to_string(child) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC)),
      SharedMemory::Receive(UniqueFd(::dup(tickets.fd())), sizeof(TicketTable)).value());
  FileSystem::DirectAnswer answer =
      volume_.file_system().AcquireDirect(file_, true, Deadline::After(std::chrono::seconds(20)));
  ASSERT_TRUE(answer.lease.has_value());
  auto lease = std::make_shared<LeasedFile>(*std::move(answer.lease), true);
  process->Change()->leases[{0, file_}] = lease;
  process->Change()->mappings.Add({.address = 1 << 20,
                                   .length = kPages * kPage,
                                   .writable = true,
                                   .tracking = Tracking::kWritten,
                                   .key = {0, file_},
                                   .file = lease});
  ClientTable processes;
  ASSERT_TRUE(processes.Add(process));
  ForeignCapture stores(processes, 0);
  Kill(child);
  ExtentSet dirty;
  stores.Take(file_, {0, kPages * kPage}, ProcessSerial::kNone, dirty);
  EXPECT_EQ(dirty.extents(), (Extents{{0, kPages * kPage}}));
  EXPECT_TRUE(stores.Any(file_, {0, kPages * kPage}));
  process->Change()->mappings.RemoveAll();
  process->Change()->leases.clear();
}

TEST_F(ClientProgramTest, ExecEndsTheOldProgramAndHoldsWhatItLeft) {
  const pid_t child = Start([](Program& program) {
    program.map[0] = 'x';
    program.Stop();
    char name[] = "sleep";
    char argument[] = "30";
    char* const arguments[] = {name, argument, nullptr};
    ::execv("/bin/sleep", arguments);
  });
  EXPECT_TRUE(registry_.IsAnnounced(child));
  ::kill(child, SIGCONT);
  EXPECT_TRUE(volume_.WaitFor([&] { return volume_.writing_mappers[file_] == 0; }));
  EXPECT_EQ(volume_.Held(file_), (Extents{{0, kPages * kPage}}));
}

class SuspendedSyncTest : public ClientFixture {};

TEST_F(SuspendedSyncTest, P6_ASyncThatWaitedWhenItsProgramEndedIsSaidToWaitNoLonger) {
  const LocalTickets tickets;
  std::optional<LocalClient> client(socket());
  ASSERT_EQ(client->HelloMain({tickets.fd()}).error(), 0);
  const auto report = [&](local::ReportKind kind) {
    return client
        ->Ask(local::RequestKind::kReport,
              [&](local::Request& request) { request.report = static_cast<uint32_t>(kind); })
        .error();
  };
  const auto count = [&](local::ReportKind kind) {
    return volume_.Locked([&] { return volume_.reports[kind]; });
  };
  EXPECT_EQ(report(local::ReportKind::kResumed), 0);
  EXPECT_EQ(count(local::ReportKind::kResumed), 0) << "nothing had waited";
  EXPECT_EQ(report(local::ReportKind::kSuspended), 0);
  EXPECT_EQ(report(local::ReportKind::kSuspended), 0);
  EXPECT_EQ(report(local::ReportKind::kResumed), 0);
  EXPECT_EQ(count(local::ReportKind::kSuspended), 2);
  EXPECT_EQ(count(local::ReportKind::kResumed), 1);
  client.reset();
  EXPECT_TRUE(volume_.WaitFor([&] { return volume_.reports[local::ReportKind::kResumed] == 2; }));
}

}  // namespace
}  // namespace pmirror::fs
