// SPDX-License-Identifier: BSD-3-Clause
// The map of order numbers of one file. See apply_order.h.
#include "replication/apply_order.h"

#include <algorithm>

namespace pmirror {
namespace {

uint64_t End(const WireRange& range) { return range.offset + range.length; }

// Appends [begin, end) to the last piece when it continues it.
void AppendPiece(std::vector<ApplyPiece>& pieces, size_t first, ApplyPiece piece) {
  if (pieces.size() > first) {
    ApplyPiece& last = pieces.back();
    if (last.offset + last.length == piece.offset &&
        last.payload_offset + last.length == piece.payload_offset) {
      last.length += piece.length;
      return;
    }
  }
  pieces.push_back(piece);
}

}  // namespace

ApplyOrder::Verdict ApplyOrder::Judge(uint64_t size_generation, uint64_t applied_operation) const {
  const uint64_t operation = size_generation / 2;
  if (operation > applied_operation) {
    return Verdict::kWaitForOperation;
  }
  return operation < size_operation_ ? Verdict::kRecapture : Verdict::kApply;
}

ApplyOrder::Entries::const_iterator ApplyOrder::FirstEndingAfter(uint64_t offset) const {
  return std::upper_bound(entries_.begin(), entries_.end(), offset,
                          [](uint64_t at, const Entry& entry) { return at < entry.end; });
}

bool ApplyOrder::Plan(uint64_t number, std::span<const WireRange> ranges,
                      std::vector<ApplyPiece>& pieces) const {
  const size_t before = pieces.size();
  uint64_t payload_offset = 0;
  for (const WireRange& range : ranges) {
    if (!PlanOne(number, range, payload_offset, pieces, before)) {
      pieces.resize(before);
      return false;
    }
    payload_offset += range.length;
  }
  return true;
}

bool ApplyOrder::PlanOne(uint64_t number, const WireRange& range, uint64_t payload_offset,
                         std::vector<ApplyPiece>& pieces, size_t first) const {
  const bool uncovered_is_old = number >= floor_;
  const auto take = [&](uint64_t begin, uint64_t end) {
    AppendPiece(pieces, first, {begin, end - begin, payload_offset + (begin - range.offset)});
  };
  uint64_t at = range.offset;
  for (auto entry = FirstEndingAfter(at); at < End(range); ++entry) {
    const uint64_t covered_from = entry == entries_.end() ? End(range) : std::min(entry->begin, End(range));
    if (at < covered_from) {
      if (!uncovered_is_old) {
        return false;
      }
      take(at, covered_from);
      at = covered_from;
    }
    if (at == End(range)) {
      break;
    }
    const uint64_t covered_to = std::min(entry->end, End(range));
    if (entry->number <= number) {
      take(at, covered_to);
    }
    at = covered_to;
  }
  return true;
}

uint64_t ApplyOrder::Newest(std::span<const WireRange> ranges) const {
  uint64_t newest = 0;
  for (const WireRange& range : ranges) {
    uint64_t at = range.offset;  // before it everything is covered by entries
    for (auto entry = FirstEndingAfter(at); entry != entries_.end() && entry->begin < End(range); ++entry) {
      newest = std::max(newest, std::max(entry->number, entry->begin > at ? floor_ : 0));
      at = entry->end;
    }
    newest = std::max(newest, at < End(range) ? floor_ : 0);
  }
  return newest;
}

void ApplyOrder::Record(uint64_t number, std::span<const WireRange> ranges) {
  // Senders sort their ranges, so that this is one run; others cost more runs, not correctness.
  for (size_t begin = 0; begin < ranges.size();) {
    size_t end = begin + 1;
    while (end < ranges.size() && End(ranges[end - 1]) <= ranges[end].offset) {
      ++end;
    }
    RecordAscending(number, ranges.subspan(begin, end - begin));
    begin = end;
  }
  if (entries_.size() > max_entries_) {
    MakeRoom();
  }
}

// Rebuilds the entries between the first and the last range, in one merge, and puts them in the place of the
// old ones.
void ApplyOrder::RecordAscending(uint64_t number, std::span<const WireRange> ranges) {
  // From the entry that touches the first range on the left, which may be joined with it.
  const auto touched_begin = FirstEndingAfter(ranges.front().offset - (ranges.front().offset != 0 ? 1 : 0));
  auto entry = touched_begin;
  uint64_t rest_from = 0;  // what is before it of *entry was dealt with
  scratch_.clear();
  for (const WireRange& range : ranges) {
    uint64_t at = range.offset;
    for (; entry != entries_.end() && std::max(entry->begin, rest_from) < End(range); ++entry) {
      const uint64_t begin = std::max(entry->begin, rest_from);
      if (begin < range.offset) {
        Append({begin, std::min(entry->end, range.offset), entry->number});
      }
      if (entry->number > number && entry->end > at) {  // newer: stays
        Append({at, std::max(at, begin), number});
        Append({std::max(at, begin), std::min(entry->end, End(range)), entry->number});
        at = std::min(entry->end, End(range));
      }
      if (entry->end > End(range)) {
        rest_from = End(range);
        break;
      }
    }
    Append({at, End(range), number});
  }
  auto touched_end = entry;
  if (entry != entries_.end()) {
    const uint64_t begin = std::max(entry->begin, rest_from);
    const bool cut = begin > entry->begin;
    const bool joins = begin == scratch_.back().end && entry->number == scratch_.back().number;
    if (cut || joins) {
      Append({begin, entry->end, entry->number});
      ++touched_end;
    }
  }
  const auto at = entries_.erase(touched_begin, touched_end);
  entries_.insert(at, scratch_.begin(), scratch_.end());
}

void ApplyOrder::Append(Entry entry) {
  if (entry.begin == entry.end) {
    return;
  }
  if (!scratch_.empty() && scratch_.back().end == entry.begin && scratch_.back().number == entry.number) {
    scratch_.back().end = entry.end;
    return;
  }
  scratch_.push_back(entry);
}

// Drops what the floor makes superfluous, and raises the floor over the older half of what is left.
void ApplyOrder::MakeRoom() {
  std::vector<uint64_t> numbers;
  numbers.reserve(entries_.size());
  for (const Entry& entry : entries_) {
    numbers.push_back(entry.number);
  }
  const auto middle = numbers.begin() + static_cast<ptrdiff_t>(numbers.size() / 2);
  std::nth_element(numbers.begin(), middle, numbers.end());
  floor_ = std::max(floor_, *middle);
  std::erase_if(entries_, [this](const Entry& entry) { return entry.number <= floor_; });
}

void ApplyOrder::SizeChanged(uint64_t operation) {
  size_operation_ = std::max(size_operation_, operation);
  floor_ = 0;
  entries_.clear();
}

void ApplyOrder::Compact() {
  for (const Entry& entry : entries_) {
    floor_ = std::max(floor_, entry.number);
  }
  Entries().swap(entries_);
  Entries().swap(scratch_);
}

}  // namespace pmirror
