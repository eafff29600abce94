// SPDX-License-Identifier: BSD-3-Clause
// Sorted array under a sequence counter. Words are stored with release and loaded with acquire: whoever sees
// a new word sees the odd sequence that came before it when it looks again. Every word is an atomic, so that
// a reader that meets a writer reads stale words, not undefined ones.
#include "interpose/mapping_table.h"

#include <sched.h>

#include <bit>

namespace pmirror::interpose {

class MappingTable::Change {
 public:
  explicit Change(MappingTable& table) : table_(table) {
    table_.sequence_.fetch_add(1, std::memory_order_acq_rel);
  }
  ~Change() { table_.sequence_.fetch_add(1, std::memory_order_release); }
  Change(const Change&) = delete;
  Change& operator=(const Change&) = delete;

 private:
  MappingTable& table_;
};

Mapping MappingTable::Load(size_t index) const {
  std::array<uint64_t, kMappingWords> words;
  for (size_t i = 0; i < kMappingWords; ++i) {
    words[i] = slots_[index].words[i].load(std::memory_order_acquire);
  }
  return std::bit_cast<Mapping>(words);
}

void MappingTable::Store(size_t index, const Mapping& mapping) {
  const auto words = std::bit_cast<std::array<uint64_t, kMappingWords>>(mapping);
  for (size_t i = 0; i < kMappingWords; ++i) {
    slots_[index].words[i].store(words[i], std::memory_order_release);
  }
}

size_t MappingTable::LowerBound(uintptr_t address, size_t count) const {
  size_t low = 0;
  size_t high = count;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (Load(middle).end() > address) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

bool MappingTable::Next(uintptr_t address, Mapping& found) const {
  for (;;) {
    const uint64_t before = sequence_.load(std::memory_order_acquire);
    if (before % 2 == 0) {
      size_t count = count_.load(std::memory_order_acquire);
      count = count <= kMaxMappings ? count : kMaxMappings;
      const size_t index = LowerBound(address, count);
      const bool there = index < count;
      const Mapping mapping = there ? Load(index) : Mapping{};
      if (sequence_.load(std::memory_order_relaxed) == before) {
        found = there ? mapping : found;
        return there;
      }
    }
    ::sched_yield();  // the writer may need this core
  }
}

bool MappingTable::Find(uintptr_t address, Mapping& found) const {
  Mapping candidate;
  if (empty() || !Next(address, candidate) || candidate.address > address) {
    return false;
  }
  found = candidate;
  return true;
}

void MappingTable::Open(size_t index, size_t count) {
  const size_t used = size();
  for (size_t i = used; i > index; --i) {
    Store(i - 1 + count, Load(i - 1));
  }
  count_.store(used + count, std::memory_order_release);
}

void MappingTable::Close(size_t index, size_t count) {
  const size_t used = size();
  for (size_t i = index + count; i < used; ++i) {
    Store(i - count, Load(i));
  }
  count_.store(used - count, std::memory_order_release);
}

void MappingTable::MergeAt(size_t index) {
  if (index + 1 >= size()) {
    return;
  }
  Mapping first = Load(index);
  const Mapping second = Load(index + 1);
  if (first.end() == second.address && first.offset + first.length == second.offset &&
      first.file == second.file && first.flags == second.flags && first.tracking == second.tracking) {
    first.length += second.length;
    Store(index, first);
    Close(index + 1, 1);
  }
}

bool MappingTable::SplitAt(uintptr_t address) {
  const size_t index = LowerBound(address, size());
  if (index == size()) {
    return true;
  }
  const Mapping whole = Load(index);
  if (whole.address >= address) {
    return true;
  }
  if (!HasRoom(1)) {
    return false;
  }
  const Change change(*this);
  Open(index, 1);
  Store(index, whole.Clip(whole.address, address));
  Store(index + 1, whole.Clip(address, whole.end()));
  return true;
}

bool MappingTable::Insert(const Mapping& mapping) {
  if (!HasRoom(1)) {
    return false;
  }
  const size_t index = LowerBound(mapping.address, size());
  const Change change(*this);
  Open(index, 1);
  Store(index, mapping);
  MergeAt(index);
  if (index > 0) {
    MergeAt(index - 1);
  }
  return true;
}

bool MappingTable::Remove(uintptr_t start, uintptr_t past) {
  if (!HasRoom(2) || !SplitAt(start) || !SplitAt(past)) {
    return false;
  }
  const size_t first = LowerBound(start, size());
  size_t last = first;
  while (last < size() && Load(last).address < past) {
    ++last;
  }
  if (last > first) {
    const Change change(*this);
    Close(first, last - first);
  }
  return true;
}

bool MappingTable::SetFlags(uintptr_t start, uintptr_t past, uint32_t set, uint32_t clear) {
  if (!HasRoom(2) || !SplitAt(start) || !SplitAt(past)) {
    return false;
  }
  const size_t first = LowerBound(start, size());
  size_t last = first;
  const Change change(*this);
  for (; last < size() && Load(last).address < past; ++last) {
    Mapping mapping = Load(last);
    mapping.flags = (mapping.flags & ~clear) | set;
    Store(last, mapping);
  }
  for (size_t i = last + 1; i-- > first;) {  // pieces that agree again
    MergeAt(i);
  }
  if (first > 0) {
    MergeAt(first - 1);
  }
  return true;
}

}  // namespace pmirror::interpose
