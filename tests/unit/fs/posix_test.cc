// SPDX-License-Identifier: BSD-3-Clause
// The POSIX exerciser: every case on a plain directory and on a mount over the same file system, call by
// call.
#include <thread>

#include "tests/unit/fs/posix_tree.h"
#include "tests/unit/fs/served_volume.h"

namespace pmirror::fs {
namespace {

// The cases fork, so another process must serve the mount.
class PosixTest : public ServedVolume, public ::testing::WithParamInterface<PosixCase> {
 protected:
  // Both trees have roots of equal mode and owner.
  std::string Plain() {
    const std::string path = scratch_.path() + "/plain";
    EXPECT_EQ(::mkdir(path.c_str(), 0755), 0);
    return path;
  }
};

TEST_P(PosixTest, MountAnswersLikeThePlainDirectory) {
  Tree plain(Plain());
  Tree mounted(mount());
  plain.Apart([&] { GetParam().run(plain); });
  mounted.Apart([&] { GetParam().run(mounted); });
  const std::vector<std::string>& expected = plain.log();
  ASSERT_FALSE(expected.empty());
  for (size_t i = 0; i < std::max(expected.size(), mounted.log().size()); ++i) {
    ASSERT_LT(i, expected.size());
    ASSERT_LT(i, mounted.log().size());
    EXPECT_EQ(mounted.log()[i], expected[i])
        << "call " << i << ", after: " << (i == 0 ? "" : expected[i - 1]);
  }
  EXPECT_EQ(mounted.Snapshot(), plain.Snapshot());
}

// What serves allocates all the time, and so holds the allocator's locks at most forks.
class BusyServerTest : public ServedVolume {
 protected:
  void PrepareBacking() override {
    allocating_ = std::jthread([](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        const std::vector<std::string> strings(1000, std::string(200, 's'));
      }
    });
  }

 private:
  std::jthread allocating_;
};

TEST_F(BusyServerTest, ChildrenOfTheTestMayAllocate) {
  for (int i = 0; i < 50; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::alarm(20);  // a hang is a failure
      const std::vector<std::string> strings(1000, std::string(200, 'c'));
      ::_exit(strings.back()[199] == 'c' ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0) << "child " << i;
  }
}

std::vector<PosixCase> AllCases() {
  std::vector<PosixCase> all = NameCases();
  for (const auto& more : {FileCases(), RightsCases()}) {
    all.insert(all.end(), more.begin(), more.end());
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Posix, PosixTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace pmirror::fs
