// SPDX-License-Identifier: BSD-3-Clause
// The replica's order map of one file in bounded memory: when it is full its oldest entry gives way and
// raises the floor, and a frame at or below the floor that no entry covers is answered with "capture again".
// Against a reference that remembers every word: a frame is never applied over something newer, and never
// skipped where nothing newer was applied. docs/internals/capture-order.md.
//
// All sets of four frames over three words in all orders of arrival, then long random histories.
#include <algorithm>
#include <array>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace pmirror::model {
namespace {

struct Frame {
  int begin;
  int end;
  int order;
};

// What is done with one word of a frame.
enum class Decision { kApply, kSkip, kRecapture };

enum class Wrong {
  kNothing,
  kFloorStays,      // an entry that gives way does not raise the floor
  kSkipBelowFloor,  // a frame below the floor counts as superseded
  kMergeToNewest,   // neighbours are merged under the newer order to save memory
  kMergeToOldest    // or under the older one
};

class BoundedMap {
 public:
  BoundedMap(size_t capacity, Wrong wrong) : capacity_(capacity), wrong_(wrong) {}

  // Nothing changes when any word needs a recapture: the frame is refused as a whole.
  std::vector<Decision> Offer(const Frame& frame) {
    std::vector<Decision> decisions;
    for (int word = frame.begin; word < frame.end; ++word) {
      decisions.push_back(Decide(word, frame.order));
    }
    if (std::find(decisions.begin(), decisions.end(), Decision::kRecapture) == decisions.end()) {
      Record(frame, decisions);
    }
    return decisions;
  }

  size_t size() const { return entries_.size(); }

 private:
  Decision Decide(int word, int order) const {
    for (const Frame& entry : entries_) {
      if (entry.begin <= word && word < entry.end) {
        return order > entry.order ? Decision::kApply : Decision::kSkip;
      }
    }
    if (order > floor_) {
      return Decision::kApply;
    }
    return wrong_ == Wrong::kSkipBelowFloor ? Decision::kSkip : Decision::kRecapture;
  }

  void Record(const Frame& frame, const std::vector<Decision>& decisions) {
    for (int word = frame.begin; word < frame.end; ++word) {
      if (decisions[word - frame.begin] == Decision::kApply) {
        Cut(word);
        entries_.push_back({word, word + 1, frame.order});
      }
    }
    Join();
    while (entries_.size() > capacity_) {
      const auto oldest = std::min_element(entries_.begin(), entries_.end(),
                                           [](const Frame& a, const Frame& b) { return a.order < b.order; });
      if (wrong_ != Wrong::kFloorStays) {
        floor_ = std::max(floor_, oldest->order);
      }
      entries_.erase(oldest);
    }
  }

  // Takes one word out of the entry that covers it.
  void Cut(int word) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      const Frame entry = entries_[i];
      if (entry.begin <= word && word < entry.end) {
        entries_.erase(entries_.begin() + static_cast<ptrdiff_t>(i));
        if (entry.begin < word) {
          entries_.push_back({entry.begin, word, entry.order});
        }
        if (word + 1 < entry.end) {
          entries_.push_back({word + 1, entry.end, entry.order});
        }
        return;
      }
    }
  }

  // Neighbours of one order become one entry.
  void Join() {
    std::sort(entries_.begin(), entries_.end(),
              [](const Frame& a, const Frame& b) { return a.begin < b.begin; });
    for (size_t i = 0; i + 1 < entries_.size();) {
      Frame& left = entries_[i];
      const Frame& right = entries_[i + 1];
      const bool merge = wrong_ == Wrong::kMergeToNewest || wrong_ == Wrong::kMergeToOldest;
      const bool full = merge && entries_.size() > capacity_;
      if (left.end == right.begin && (left.order == right.order || full)) {
        left.end = right.end;
        left.order = wrong_ == Wrong::kMergeToOldest ? std::min(left.order, right.order)
                                                     : std::max(left.order, right.order);
        entries_.erase(entries_.begin() + static_cast<ptrdiff_t>(i) + 1);
      } else {
        ++i;
      }
    }
  }

  size_t capacity_;
  Wrong wrong_;
  int floor_ = 0;
  std::vector<Frame> entries_;
};

// Feeds `arrivals` to the map; a refused frame comes again at once under the next new number, as its sender
// would do. Returns what went wrong, in words, or nothing.
std::optional<std::string> Feed(const std::vector<Frame>& arrivals, int words, size_t capacity, Wrong wrong) {
  BoundedMap map(capacity, wrong);
  std::vector<int> newest(words, 0);  // the reference: per word the newest order applied
  int next = 0;
  for (const Frame& frame : arrivals) {
    next = std::max(next, frame.order);
  }
  std::string story;
  for (Frame frame : arrivals) {
    for (int attempt = 0;; ++attempt) {
      story += " #" + std::to_string(frame.order) + " on [" + std::to_string(frame.begin) + "," +
               std::to_string(frame.end) + ")";
      const std::vector<Decision> decisions = map.Offer(frame);
      if (std::find(decisions.begin(), decisions.end(), Decision::kRecapture) != decisions.end()) {
        if (attempt > 0) {
          return story + ": the newest number of all is refused";
        }
        story += " (again:)";
        frame.order = ++next;
        continue;
      }
      for (int word = frame.begin; word < frame.end; ++word) {
        const bool newer = frame.order > newest[word];
        const bool applied = decisions[word - frame.begin] == Decision::kApply;
        if (newer != applied) {
          return story + ": word " + std::to_string(word) +
                 (applied ? " is applied over something newer" : " is skipped");
        }
        newest[word] = std::max(newest[word], frame.order);
      }
      break;
    }
    if (map.size() > capacity) {
      return story + ": the map outgrows its bound";
    }
  }
  return std::nullopt;
}

// Every set of four frames with the numbers 1 to 4 over three words, in every order of arrival.
std::optional<std::string> FeedAll(size_t capacity, Wrong wrong) {
  constexpr int kWords = 3;
  std::vector<std::pair<int, int>> ranges;
  for (int begin = 0; begin < kWords; ++begin) {
    for (int end = begin + 1; end <= kWords; ++end) {
      ranges.emplace_back(begin, end);
    }
  }
  std::array<int, 4> orders = {1, 2, 3, 4};
  do {
    for (size_t pick = 0; pick < ranges.size() * ranges.size() * ranges.size() * ranges.size(); ++pick) {
      std::vector<Frame> arrivals;
      size_t rest = pick;
      for (const int order : orders) {
        const auto [begin, end] = ranges[rest % ranges.size()];
        rest /= ranges.size();
        arrivals.push_back({begin, end, order});
      }
      if (auto failure = Feed(arrivals, kWords, capacity, wrong)) {
        return failure;
      }
    }
  } while (std::next_permutation(orders.begin(), orders.end()));
  return std::nullopt;
}

void ExpectFailure(size_t capacity, Wrong wrong, const char* what) {
  const auto failure = FeedAll(capacity, wrong);
  ASSERT_TRUE(failure.has_value());
  EXPECT_NE(failure->find(what), std::string::npos) << *failure;
  std::cout << "  counterexample:" << *failure << "\n";
}

TEST(Trap1IntervalMap, FloorAndRecaptureNeverSkipNorOverwriteInAllSmallHistories) {
  for (const size_t capacity : {1, 2, 3}) {
    EXPECT_EQ(FeedAll(capacity, Wrong::kNothing), std::nullopt) << "capacity " << capacity;
  }
}

TEST(Trap1IntervalMap, FloorAndRecaptureNeverSkipNorOverwriteInRandomHistories) {
  constexpr int kWords = 24;
  for (unsigned seed = 1; seed <= 300; ++seed) {
    std::mt19937 random(seed);
    std::vector<Frame> arrivals;
    for (int order = 1; order <= 200; ++order) {
      const int begin = static_cast<int>(random() % kWords);
      arrivals.push_back({begin, begin + 1 + static_cast<int>(random() % (kWords - begin)), order});
    }
    // Late by up to some thirty places, as far as frames of different sessions overtake each other.
    for (size_t i = 0; i < arrivals.size(); ++i) {
      std::swap(arrivals[i], arrivals[std::min(arrivals.size() - 1, i + random() % 30)]);
    }
    ASSERT_EQ(Feed(arrivals, kWords, 1 + seed % 7, Wrong::kNothing), std::nullopt) << "seed " << seed;
  }
}

TEST(Trap1IntervalMap, EntryThatGivesWayWithoutRaisingTheFloorLetsOldBytesIn) {
  ExpectFailure(1, Wrong::kFloorStays, "applied over something newer");
}
TEST(Trap1IntervalMap, MergingNeighboursUnderTheOlderOrderLetsOldBytesIn) {
  ExpectFailure(1, Wrong::kMergeToOldest, "applied over something newer");
}
TEST(Trap1IntervalMap, SkippingBelowTheFloorLosesBytes) {
  ExpectFailure(1, Wrong::kSkipBelowFloor, "is skipped");
}
TEST(Trap1IntervalMap, MergingNeighboursUnderTheNewerOrderLosesBytes) {
  ExpectFailure(1, Wrong::kMergeToNewest, "is skipped");
}

}  // namespace
}  // namespace pmirror::model
