// SPDX-License-Identifier: BSD-3-Clause
// Trap 14 in the small: numbers that are ours, and what becomes of them.
#include "interpose/own_descriptors.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>

namespace pmirror::interpose {
namespace {

UniqueFd Memory() { return UniqueFd(::memfd_create("own", 0)); }

ino_t InodeOf(int fd) {
  struct stat status {};
  EXPECT_EQ(::fstat(fd, &status), 0);
  return status.st_ino;
}

class Trap14OwnDescriptors : public ::testing::Test {
 protected:
  std::unique_ptr<OwnDescriptors> own_ = std::make_unique<OwnDescriptors>();
};

TEST_F(Trap14OwnDescriptors, AdoptedNumberIsHighAndClosedOnExec) {
  const auto handle = own_->Adopt(Memory(), OwnKind::kBacking);
  const int number = own_->Number(handle);
  EXPECT_GE(number, 512);
  EXPECT_NE(::fcntl(number, F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_TRUE(own_->Owns(number));
  EXPECT_FALSE(own_->Owns(number + 1));
  EXPECT_FALSE(own_->Owns(0));
  EXPECT_EQ(own_->NextOwned(0), number);
  EXPECT_EQ(own_->NextOwned(number + 1), -1);
  own_->Close(handle);
  EXPECT_EQ(own_->Number(handle), -1);
  EXPECT_FALSE(own_->Owns(number));
  EXPECT_EQ(::fcntl(number, F_GETFD), -1);
}

TEST_F(Trap14OwnDescriptors, NumberClosedBehindOurBackIsForgotten) {
  const int number = own_->Number(own_->Adopt(Memory(), OwnKind::kBacking));
  ::close(number);
  EXPECT_FALSE(own_->Owns(number));
  UniqueFd other = Memory();
  ASSERT_EQ(::dup2(other.get(), number), number);
  EXPECT_FALSE(own_->Owns(number));
  ::close(number);
}

TEST_F(Trap14OwnDescriptors, VacatedNumberMovesAndKeepsItsFile) {
  const auto handle = own_->Adopt(Memory(), OwnKind::kPagemap);
  const int before = own_->Number(handle);
  const ino_t inode = InodeOf(before);
  EXPECT_FALSE(own_->Vacate(before).session);
  const int after = own_->Number(handle);
  EXPECT_NE(after, before);
  EXPECT_EQ(InodeOf(after), inode);
  EXPECT_EQ(own_->Single(OwnKind::kPagemap), after);
  EXPECT_FALSE(own_->Owns(before));
  EXPECT_TRUE(own_->Owns(after));
  ::close(before);
  own_->Close(handle);
}

TEST_F(Trap14OwnDescriptors, SessionTellsItsTagAndStaysAtItsNumber) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  UniqueFd far(pair[1]);
  UniqueFd session = own_->AdoptSession(UniqueFd(pair[0]), 17);
  EXPECT_TRUE(own_->Owns(session.get()));
  // The next connection of the session, put in the place of the first.
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  UniqueFd far2(pair[1]);
  UniqueFd next = own_->AdoptSession(UniqueFd(pair[0]), 17);
  ASSERT_EQ(::dup3(next.get(), session.get(), O_CLOEXEC), session.get());
  EXPECT_TRUE(own_->Owns(session.get()));
  const OwnDescriptors::Vacated vacated = own_->Vacate(session.get());
  EXPECT_TRUE(vacated.session);
  EXPECT_EQ(vacated.tag, 17u);
  EXPECT_FALSE(own_->Owns(session.get()));
}

TEST_F(Trap14OwnDescriptors, ChildKeepsBackingFilesAndTheLogAlone) {
  const auto backing = own_->Adopt(Memory(), OwnKind::kBacking);
  const auto channel = own_->Adopt(Memory(), OwnKind::kChannel);
  const int number = own_->Number(channel);
  own_->CloseInChild();
  EXPECT_EQ(own_->Number(channel), -1);
  EXPECT_EQ(::fcntl(number, F_GETFD), -1);
  EXPECT_GE(own_->Number(backing), 0);
  own_->Close(backing);
}

}  // namespace
}  // namespace pmirror::interpose
