// SPDX-License-Identifier: BSD-3-Clause
// What a replica does with a confirmation: it answers what is equal, and what is equal no older frame changes (docs/internals/resync.md).
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "tests/unit/server/data_plane_fixture.h"

namespace {
std::atomic<int> synced_files = 0;
}

// Instead of the C library's, for the whole test program: counts.
extern "C" int fdatasync(int fd) {
  ++synced_files;
  return static_cast<int>(::syscall(SYS_fdatasync, fd));
}

namespace pmirror::server {
namespace {

const std::string kOne(kConfirmBlock, '1');
const std::string kTwo(kConfirmBlock, '2');

class ConfirmTest : public DataPlaneTest {
 protected:
  // Bit a block. Of the latest confirmation, which is awaited.
  uint64_t Equal(Sequence sequence) {
    EXPECT_TRUE(daemon_->AwaitReceived(sequence));
    EXPECT_FALSE(daemon_->RefusalOf(sequence).has_value());
    if (daemon_->confirmed().empty() || daemon_->confirmed().back().sequence != sequence) {
      ADD_FAILURE() << "no answer";
      return 0;
    }
    EXPECT_EQ(daemon_->confirmed().back().file, kFile);
    return daemon_->confirmed().back().equal[0];
  }
};

TEST_F(ConfirmTest, Trap7EachBlockIsComparedAndAnOlderFrameChangesNoEqualOne) {
  daemon_->Data(kFile, 1, 0, kOne + kOne + kOne);
  EXPECT_EQ(Equal(daemon_->Confirm(kFile, 9, 0, kOne + kTwo + kOne)), 0b101u);
  // Captured before the number was taken, and slow: its bytes are in the sums, or have been stored over since.
  ReplicaClient slow = Process();
  ASSERT_TRUE(slow.AwaitReceived(slow.Data(kFile, 8, 0, kTwo + kTwo + kTwo, kFlagAckWanted)));
  EXPECT_EQ(Content(), kOne + kTwo + kOne) << "where it is not equal, nothing was entered";
  ASSERT_TRUE(slow.AwaitReceived(slow.Data(kFile, 10, 0, kTwo, kFlagAckWanted)));
  EXPECT_EQ(Content(), kTwo + kTwo + kOne);
}

TEST_F(ConfirmTest, WhatIsNewerKeepsItsNumberAlsoWhereItIsEqual) {
  daemon_->Data(kFile, 20, 0, kOne);
  EXPECT_EQ(Equal(daemon_->Confirm(kFile, 9, 0, kOne)), 1u);
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Data(kFile, 15, 0, kTwo, kFlagAckWanted)));
  EXPECT_EQ(Content(), kOne);
}

TEST_F(ConfirmTest, WhatTheFileDoesNotHaveIsNotEqual) {
  daemon_->Data(kFile, 1, 0, kOne + std::string(100, '\0'));
  EXPECT_EQ(Equal(daemon_->Confirm(kFile, 2, 0, kOne + std::string(2 * kConfirmBlock, '\0'))), 1u);
  EXPECT_EQ(Equal(daemon_->Confirm(kFile, 3, 100 * kConfirmBlock, kOne)), 0u);
}

TEST_F(ConfirmTest, AllBlocksOfALargeRangeHaveTheirBit) {
  std::string bytes;
  for (int i = 0; i < 256; ++i) {
    bytes += std::string(kConfirmBlock, static_cast<char>(i));
  }
  for (size_t at = 0; at < bytes.size(); at += 1 << 16) {  // as much as the credit allows
    ASSERT_TRUE(
        daemon_->AwaitReceived(daemon_->Data(kFile, 1, at, bytes.substr(at, 1 << 16), kFlagAckWanted)));
  }
  bytes[200 * kConfirmBlock] = 'x';
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Confirm(kFile, 2, 0, bytes)));
  for (size_t block = 0; block < kMaxConfirmBlocks; ++block) {
    EXPECT_EQ(daemon_->confirmed().back().is_equal(block), block < 256 && block != 200) << block;
  }
}

class ConfirmOnDiskTest : public ConfirmTest {
 protected:
  ConfirmOnDiskTest() { bed_.options().domain = Domain::kFile; }
};

TEST_F(ConfirmOnDiskTest, P1ABarrierMakesDurableWhatWasFoundEqualAndAnotherSessionSent) {
  ReplicaClient process = Process();
  ASSERT_TRUE(daemon_->AwaitDurable(daemon_->Barrier()));  // the tree is settled
  ASSERT_TRUE(process.AwaitReceived(process.Data(kFile, 1, 0, kOne, kFlagAckWanted)));
  EXPECT_EQ(Equal(daemon_->Confirm(kFile, 2, 0, kOne)), 1u);
  const int before = synced_files;
  ASSERT_TRUE(daemon_->AwaitDurable(daemon_->Barrier()));
  EXPECT_EQ(synced_files, before + 1);
  ASSERT_TRUE(daemon_->AwaitDurable(daemon_->Barrier()));
  EXPECT_EQ(synced_files, before + 1) << "nothing was changed since";
}

TEST_F(ConfirmTest, Trap8BesideASizeOperationItSaysNothing) {
  daemon_->Data(kFile, 1, 0, kOne);
  const Sequence early = daemon_->Confirm(kFile, 2, 0, kOne, /*size_generation=*/200);
  ASSERT_TRUE(daemon_->AwaitReceived(early));
  EXPECT_EQ(daemon_->RefusalOf(early), RefusalCode::kRecapture);
  NamespaceOp grow;
  grow.kind = OpKind::kTruncate;
  grow.target = FileId{kFile};
  grow.extent = {2 * kConfirmBlock, 0};
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(++operations_, grow)));
  const Sequence late = daemon_->Confirm(kFile, 3, 0, kOne);
  ASSERT_TRUE(daemon_->AwaitReceived(late));
  EXPECT_EQ(daemon_->RefusalOf(late), RefusalCode::kRecapture);
  EXPECT_TRUE(daemon_->confirmed().empty());
  EXPECT_EQ(Equal(daemon_->Confirm(kFile, 4, 0, kOne + kOne, 2 * operations_)), 1u);
}

TEST_F(ConfirmTest, P9OnlyTheDaemonMayAskAndOnlyAboutAFileThatThereIs) {
  ReplicaClient process = Process();
  const Sequence refused = process.Confirm(kFile, 1, 0, kOne);
  ASSERT_TRUE(process.AwaitReceived(refused));
  EXPECT_EQ(process.RefusalOf(refused), RefusalCode::kNotGranted);
  const Sequence unknown = daemon_->Confirm(999, 1, 0, kOne);
  ASSERT_TRUE(daemon_->AwaitReceived(unknown));
  EXPECT_EQ(daemon_->RefusalOf(unknown), RefusalCode::kNoSuchFile);
}

TEST_F(ConfirmTest, P9OneThatContradictsItselfCutsTheConnection) {
  FrameHeader header = daemon_->Header(FrameKind::kConfirm, kFlagAckWanted);
  header.file = kFile;
  header.order = 1;
  const WireRange crooked{100, kConfirmBlock};
  const BlockSum16 sum{};
  daemon_->SendBytes(EncodeFrame(header, {&crooked, 1}, std::as_bytes(std::span(&sum, 1))));
  EXPECT_TRUE(daemon_->AwaitCut());
}

}  // namespace
}  // namespace pmirror::server
