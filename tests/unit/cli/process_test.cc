// SPDX-License-Identifier: BSD-3-Clause
// Running tools and daemons, finding processes by their mark, and ending them.
#include "cli/process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "cli/wait.h"

namespace pmirror::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using namespace std::chrono_literals;

TEST(RunToolTest, GivesTheInputAndReturnsTheOutput) {
  const std::string large(1 << 20, 'x');
  const absl::StatusOr<std::string> output = RunTool({"cat"}, large);
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(*output, large);
}

TEST(RunToolTest, AToolThatDoesNotReadItsInputIsNoHarm) {
  EXPECT_TRUE(RunTool({"true"}, std::string(1 << 20, 'x')).ok());
}

TEST(RunToolTest, P9_AToolThatFailsIsNamedWithWhatItSaid) {
  const absl::StatusOr<std::string> output = RunTool({"sh", "-c", "echo the reason >&2; exit 3"});
  EXPECT_EQ(std::string(output.status().message()), "sh: the reason");
}

TEST(RunToolTest, P9_AToolThatIsNotThereIsSaidToBeMissing) {
  EXPECT_THAT(std::string(RunTool({"no-such-tool-at-all"}).status().message()), HasSubstr("not found"));
}

class DaemonTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "pmirror-process-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
    marker_ = "PMIRROR_TEST_MARK=" + name;
  }
  void TearDown() override {
    EXPECT_TRUE(KillAll([this] { return ProcessesWithEnvironment(marker_); }).ok());
    std::filesystem::remove_all(directory_);
  }
  pid_t Start(const std::string& script) {
    const absl::StatusOr<pid_t> pid =
        StartDaemon({{"/bin/sh", "-c", script}, directory_ / "log", "", {marker_}});
    EXPECT_TRUE(pid.ok()) << pid.status();
    return pid.value_or(-1);
  }
  std::string Log() {
    std::ifstream in(directory_ / "log");
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }

  std::filesystem::path directory_;
  std::string marker_;
};

TEST_F(DaemonTest, WritesToItsLogHoldsNothingOfOursAndLeadsASession) {
  const pid_t pid = Start("ls -l /proc/self/fd | wc -l; exec tail -f /dev/null");
  ASSERT_TRUE(WaitUntil([this] { return !Log().empty(); }, 10s));
  EXPECT_LE(std::stoi(Log()), 6);  // a heading, 0, 1, 2, and the two that ls opens
  EXPECT_EQ(::getsid(pid), pid);
}

TEST_F(DaemonTest, IsFoundByItsMarkAlsoInItsChildrenAndEndedWithThem) {
  const pid_t pid = Start("tail -f /dev/null & echo started; wait");
  ASSERT_TRUE(
      WaitUntil([this] { return !Log().empty() && ProcessesWithEnvironment(marker_).size() == 2; }, 10s));
  EXPECT_TRUE(IsRunning(pid));
  EXPECT_TRUE(KillAll([this] { return ProcessesWithEnvironment(marker_); }).ok());
  EXPECT_THAT(ProcessesWithEnvironment(marker_), IsEmpty());
  EXPECT_FALSE(IsRunning(pid));
}

TEST_F(DaemonTest, AMarkThatOnlyBeginsAlikeIsNotFound) {
  const pid_t pid = Start("exec tail -f /dev/null");
  ASSERT_TRUE(WaitUntil([this] { return ProcessesWithEnvironment(marker_).size() == 1; }, 10s));
  EXPECT_THAT(ProcessesWithEnvironment(marker_), ElementsAre(pid));
  EXPECT_THAT(ProcessesWithEnvironment(marker_.substr(0, marker_.size() - 1)), IsEmpty());
}

TEST_F(DaemonTest, AZombieDoesNotRun) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::_exit(0);
  }
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), 0);
  EXPECT_FALSE(IsRunning(pid));
  ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);
}

}  // namespace
}  // namespace pmirror::cli
