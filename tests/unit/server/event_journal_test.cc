// SPDX-License-Identifier: BSD-3-Clause
// The journal over restarts, kills, damage, a full disk, and with readers that wait.
#include "server/event_journal.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <iterator>
#include <memory>
#include <thread>

#include "tests/unit/server/temp_directory.h"

namespace pmirror::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

Event Sample() {
  Event event;
  event.seq = 7;
  event.time = EventTime(std::chrono::microseconds(1'769'860'800'000'001));
  event.severity = LogLevel::kWarn;
  event.name = "peer_unreachable";
  event.node = "n1";
  event.fields = {{"node", "n2"}, {"reason", "says \"no\"\n"}};
  return event;
}

TEST(JournalLineTest, ALineIsAsTheHeaderSaysAndReadsBack) {
  const std::string line = JournalLine(Sample());
  EXPECT_THAT(line, HasSubstr(R"({"seq":7,"time":"2026-01-31T12:00:00.000001Z","severity":"warning",)"
                              R"("event":"peer_unreachable","node":"n1","fields":{"node":"n2",)"
                              R"("reason":"says \"no\"\n"},"crc":")"));
  Event event;
  ASSERT_TRUE(ParseJournalLine(line, event));
  EXPECT_EQ(JournalLine(event), line);
  EXPECT_EQ(event.time, Sample().time);
}

TEST(JournalLineTest, P5_EveryBitThatFlipsAndEveryCutIsFound) {
  const std::string line = JournalLine(Sample());
  Event event;
  for (size_t at = 0; at + 1 < line.size(); ++at) {
    EXPECT_FALSE(ParseJournalLine(line.substr(0, at), event)) << at;
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = line;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      EXPECT_FALSE(ParseJournalLine(damaged, event)) << at << " " << bit;
    }
  }
}

TEST(JournalLineTest, TextThatIsNotUtf8OrTooLongIsKeptAsWellAsPossible) {
  EXPECT_EQ(KeptText("a\xff"
                     "b"),
            "a\xef\xbf\xbd"
            "b");
  EXPECT_EQ(KeptText(std::string(10'000, 'x')).size(), kMaxValue);
}

class EventJournalTest : public ::testing::Test {
 protected:
  void SetUp() override { directory_ = std::make_unique<TempDirectory>(); }

  void Start(EventJournal::Options options = {}) {
    options.node = "n1";
    journal_ = std::make_unique<EventJournal>(std::move(options));
    journal_->Open(directory_->path());
  }
  // As a daemon that ends cleanly.
  void Stop() {
    Say("stopped");
    journal_.reset();
  }
  void Say(const std::string& name) {
    journal_->Append(std::chrono::system_clock::now(), LogLevel::kInfo, name, {{"volume", "v0"}});
  }
  std::vector<std::string> Names(uint64_t after = 0) const {
    std::vector<std::string> names;
    for (const Event& event : journal_->Read(after, 100'000).events) {
      names.push_back(event.name);
    }
    return names;
  }
  std::vector<uint64_t> Numbers() const {
    std::vector<uint64_t> numbers;
    for (const Event& event : journal_->Read(0, 100'000).events) {
      numbers.push_back(event.seq);
    }
    return numbers;
  }
  std::string File() const { return *directory_ / "events.jsonl"; }
  static std::string TextOf(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
  static void Put(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
  }
  // Waits for an event of that name.
  bool Await(const std::string& name) const {
    uint64_t after = 0;
    const auto end = std::chrono::steady_clock::now() + 30s;
    while (std::chrono::steady_clock::now() < end) {
      for (const Event& event : journal_->Read(after, 1000).events) {
        after = event.seq;
        if (event.name == name) {
          return true;
        }
      }
      (void)journal_->Wait(after, 1s);
    }
    return false;
  }

  std::unique_ptr<TempDirectory> directory_;
  std::unique_ptr<EventJournal> journal_;
};

TEST_F(EventJournalTest, NumbersGoOnAfterACleanEnd) {
  Start();
  Say("a");
  Stop();
  Start();
  Say("b");
  EXPECT_THAT(Names(), ElementsAre("a", "stopped", "b"));
  EXPECT_THAT(Numbers(), ElementsAre(1, 2, 3));
}

TEST_F(EventJournalTest, ANumberIsNeverGivenTwiceAlsoWhenTheFileLacksTheLastOnes) {
  Start();
  Say("a");
  Say("b");
  journal_.reset();  // no "stopped": it was killed
  Start();
  Say("c");
  EXPECT_THAT(Numbers(), ElementsAre(1, 2, 3 + EventJournal::kNumbersLeftOut));
  const EventJournal::Page page = journal_->Read(2, 10);
  EXPECT_EQ(page.events.size(), 1u);
  EXPECT_FALSE(page.gap) << "nothing is missing between them";
}

TEST_F(EventJournalTest, WhatComesBeforeOpenIsKeptAfterWhatTheFileHolds) {
  Start();
  Stop();
  journal_ = std::make_unique<EventJournal>(EventJournal::Options{.node = "n1"});
  Say("starting");
  journal_->Open(directory_->path());
  EXPECT_THAT(Names(), ElementsAre("stopped", "starting"));
}

TEST_F(EventJournalTest, P5_DamagedLinesAreSkippedAndSaidOnce) {
  Start();
  for (const char* name : {"a", "b", "c"}) {
    Say(name);
  }
  Stop();
  std::string text = TextOf(File());
  text[text.find("\"b\"") + 1] = 'x';
  Put(File(), text + "\n{\"seq\":99,\"time\"");  // an empty line, and one that is torn
  Start();
  EXPECT_THAT(Names(), ElementsAre("a", "c", "stopped", "journal_damaged"));
  const Event damage = journal_->Read(4, 1).events.at(0);
  EXPECT_EQ(damage.fields, (Event::Fields{{"file", File()}, {"lines", "3"}}));
  Stop();
  Start();
  EXPECT_THAT(Names(), ElementsAre("a", "c", "stopped", "journal_damaged", "stopped"));
}

TEST_F(EventJournalTest, P5_FilesOfAnyContentNeverHurt) {
  Put(File(), std::string(100'000, '\0'));
  Put(*directory_ / "events.1.jsonl", "{}\n[]\n\"\"\n");
  Start();
  Say("a");
  EXPECT_THAT(Names(), ElementsAre("journal_damaged", "journal_damaged", "a"));
}

TEST_F(EventJournalTest, TheFilesAndTheMemoryAreBounded) {
  Start({.file_bytes = 20'000, .held = 50});
  for (int i = 0; i < 2000; ++i) {
    Say("event");
    if (i % 20 == 0) {
      while (TextOf(File()).find("\"seq\":" + std::to_string(i + 1) + ",") == std::string::npos) {
        std::this_thread::yield();  // the writing thread comes as far
      }
    }
  }
  EXPECT_EQ(Names().size(), 50u);
  EXPECT_TRUE(journal_->Read(1, 1).gap);
  EXPECT_FALSE(journal_->Read(1950, 1).gap);
  EXPECT_FALSE(journal_->Read(0, 1).gap) << "who knows nothing misses nothing";
  Stop();
  for (const char* name : {"/events.jsonl", "/events.1.jsonl"}) {
    struct stat attributes {};
    ASSERT_EQ(::stat((directory_->path() + name).c_str(), &attributes), 0);
    EXPECT_LE(attributes.st_size, 10'000);
    EXPECT_EQ(attributes.st_mode & 0777, 0600u);
  }
  Start({.held = 50});
  EXPECT_EQ(Names().size(), 50u);
  EXPECT_EQ(Names().back(), "stopped");
}

TEST_F(EventJournalTest, AFullDiskCostsNothingButTheFileAndIsToldOnceAtBothEnds) {
  if (!directory_->MountSmall(64 << 10)) {
    GTEST_SKIP() << "may not mount";
  }
  Start();
  Say("before");
  const std::string ballast = *directory_ / "ballast";
  {
    std::ofstream out(ballast, std::ios::binary);
    while (out.write("0123456789abcdef", 16).flush()) {
    }
  }
  for (int i = 0; i < 300; ++i) {  // more than the rest of the file's last page has room for
    Say("meanwhile");
  }
  ASSERT_TRUE(Await("journal_not_written"));
  Say("meanwhile");
  ASSERT_EQ(::unlink(ballast.c_str()), 0);
  Say("after");
  ASSERT_TRUE(Await("journal_written"));
  const std::vector<std::string> names = Names();
  EXPECT_EQ(std::count(names.begin(), names.end(), "journal_not_written"), 1);
  EXPECT_EQ(std::count(names.begin(), names.end(), "journal_written"), 1);
  Stop();
  Start();
  EXPECT_EQ(Names().size(), names.size() + 1) << "all was written in the end, nothing twice, nothing damaged";
}

TEST_F(EventJournalTest, AStateDirectoryThatIsGoneHurtsNobody) {
  const std::string inner = *directory_ / "inner";
  journal_ = std::make_unique<EventJournal>(EventJournal::Options{.node = "n1"});
  journal_->Open(inner);
  Say("a");
  EXPECT_TRUE(Await("journal_not_written"));
}

TEST_F(EventJournalTest, AReaderGetsEachEventOnceWithoutAskingAgain) {
  Start();
  constexpr uint64_t kEvents = 5000;
  std::vector<uint64_t> seen;
  std::thread reader([&] {
    uint64_t after = 0;
    while (after < kEvents) {
      ASSERT_TRUE(journal_->Wait(after, 30s));
      for (const Event& event : journal_->Read(after, 100).events) {
        after = event.seq;
        seen.push_back(after);
      }
    }
  });
  std::thread other([&] {
    for (uint64_t i = 0; i < kEvents / 2; ++i) {
      Say("x");
    }
  });
  for (uint64_t i = 0; i < kEvents / 2; ++i) {
    Say("y");
  }
  other.join();
  reader.join();
  EXPECT_EQ(seen.size(), kEvents);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
}

TEST_F(EventJournalTest, P6_AWaitEndsWhenItIsWokenAndWhenTheJournalIsClosed) {
  Start();
  std::atomic<int> ended{0};
  const auto wait = [&] {
    EXPECT_FALSE(journal_->Wait(0, 60s));
    ++ended;
  };
  std::thread woken(wait);
  while (ended == 0) {
    journal_->Wake();
    std::this_thread::yield();
  }
  woken.join();
  std::thread closed(wait);
  journal_->Close();
  closed.join();
  EXPECT_EQ(ended, 2);
}

TEST_F(EventJournalTest, AReaderOfAnotherStateDirectoryBeginsAnew) {
  Start();
  Say("a");
  EXPECT_TRUE(journal_->Wait(5000, 1s));
  EXPECT_THAT(Names(5000), ElementsAre("a"));
}

}  // namespace
}  // namespace pmirror::server
