// SPDX-License-Identifier: BSD-3-Clause
// How oracle.h does it.
#include "tests/sim/oracle.h"

#include <algorithm>

namespace pmirror::sim {

void Oracle::Object(std::string what) {
  if (wrong_.empty()) {
    wrong_ = std::move(what);
    world_.Trace("ORACLE {}", wrong_);
  }
}

void Oracle::Stored(FileId file, uint64_t word, uint64_t value) {
  Word& entry = words_[file][word];
  entry.newest = value;
  entry.values.push_back(value);
}

void Oracle::Resized(FileId file, uint64_t old_size, uint64_t new_size) {
  if (new_size >= old_size) {
    return;
  }
  const uint64_t stamp = world_.Stamp();
  for (auto& [word, entry] : words_[file]) {
    if (word * kWord >= new_size && word * kWord < old_size) {
      entry.newest = entry.last_zero = stamp;
    }
  }
}

// A power cut may bring it back.
void Oracle::Removed(FileId file) {
  for (auto& [word, entry] : words_[file]) {
    entry.required = entry.newest = 0;
    entry.last_zero = world_.stamp();
  }
  for (Returned& sync : returned_) {
    if (sync.file == file) {
      sync.covers.clear();
    }
  }
  for (Copy& copy : copies_) {
    std::erase_if(copy.bound, [file](const auto& item) { return item.first.first == file; });
  }
  for (auto& [id, sync] : running_) {
    if (sync.file == file) {
      sync.covers.clear();
    }
  }
}

void Oracle::PrimaryReverted() {
  CheckCopy(0);
  for (auto& [file, words] : words_) {
    for (auto& [word, entry] : words) {
      entry.newest = StampOf(entry, copies_[0].disk->Visible(file, word));
    }
  }
}

Oracle::SyncToken Oracle::SyncBegins(FileId file, uint64_t first_word, uint64_t end_word, Time allowed) {
  Running running{.file = file, .covers = {}, .late = world_.now() + allowed};
  for (const auto& [word, entry] : words_[file]) {
    if (word >= first_word && word < end_word) {
      running.covers.emplace_back(word, entry.newest);
    }
  }
  running_.emplace(next_sync_, std::move(running));
  return {next_sync_++};
}

void Oracle::SyncReturned(SyncToken token, bool success) {
  const auto found = running_.find(token.id);
  if (found == running_.end()) {
    return;
  }
  if (success) {
    ++acknowledged_;
    Running& sync = found->second;
    if (world_.settings.on_loss != OnLoss::kProceed) {
      EverybodyHas(sync);
    }
    for (const auto& [word, stamp] : sync.covers) {
      if (const auto file = words_.find(sync.file); file != words_.end()) {
        Word& entry = file->second[word];
        entry.required = std::max(entry.required, stamp);
      }
    }
    returned_.push_back({.at = world_.Stamp(), .file = sync.file, .covers = std::move(sync.covers)});
  }
  running_.erase(found);
  Check();
}

// Without leave to proceed a success means that every configured replica has it.
void Oracle::EverybodyHas(const Running& sync) {
  for (size_t index = 1; index < copies_.size(); ++index) {
    for (const auto& [word, stamp] : sync.covers) {
      const auto file = words_.find(sync.file);
      if (file == words_.end()) {
        return;
      }
      const uint64_t durable = copies_[index].disk->Durable(sync.file, word);
      if (StampOf(file->second[word], durable) < stamp) {
        Object(fmt::format(
            "P1: a sync of file {:#x} succeeded, and copy {} has durably {} in word {} instead of {}",
            Raw(sync.file), index, durable, word, stamp));
      }
    }
  }
}

void Oracle::Promotable(size_t copy, bool promotable) {
  copies_[copy].promotable = promotable;
  Reverted(copy);
}

void Oracle::Reverted(size_t index) {
  Copy& copy = copies_[index];
  copy.newest = 0;
  copy.folded = 0;
  copy.bound.clear();
}

const std::string& Oracle::Check() {
  for (size_t copy = 0; copy < copies_.size(); ++copy) {
    CheckCopy(copy);
  }
  for (const auto& [id, sync] : running_) {
    if (world_.now() > sync.late) {
      Object(fmt::format("P6: a sync of file {:#x} waits longer than its policy allows", Raw(sync.file)));
    }
  }
  return wrong_;
}

void Oracle::CheckCopy(size_t index) {
  Copy& copy = copies_[index];
  const bool primary = index == 0;
  if (!wrong_.empty() || (!primary && !copy.counts && !copy.promotable)) {
    return;
  }
  if (!primary && copy.promotable) {
    for (const auto& [file, words] : words_) {
      for (const auto& [word, entry] : words) {
        copy.newest = std::max({copy.newest, copy.disk->Visible(file, word), copy.disk->Durable(file, word)});
      }
    }
    for (; copy.folded < returned_.size() && returned_[copy.folded].at < copy.newest; ++copy.folded) {
      const Returned& sync = returned_[copy.folded];
      for (const auto& [word, stamp] : sync.covers) {
        uint64_t& bound = copy.bound[{sync.file, word}];
        bound = std::max(bound, stamp);
      }
    }
  }
  for (const auto& [file, words] : words_) {
    for (const auto& [word, entry] : words) {
      CheckWord(index, copy, {file, word}, entry);
    }
  }
}

void Oracle::CheckWord(size_t index, Copy& copy, const Place& place, const Word& word) {
  const uint64_t visible = copy.disk->Visible(place.first, place.second);
  const uint64_t durable = copy.disk->Durable(place.first, place.second);
  for (const uint64_t value : {visible, durable}) {
    if (value != 0 && !std::binary_search(word.values.begin(), word.values.end(), value)) {
      Object(fmt::format("P2: copy {} has {} in word {} of file {:#x}, which nobody stored there", index,
                         value, place.second, Raw(place.first)));
    }
  }
  const auto older = [&](uint64_t required) {
    return StampOf(word, visible) < required || StampOf(word, durable) < required;
  };
  if ((index == 0 || copy.counts) && older(word.required)) {
    Object(fmt::format("P3: copy {} has {} (durably {}) in word {} of file {:#x}, acknowledged was {}", index,
                       visible, durable, place.second, Raw(place.first), word.required));
  }
  if (index != 0 && copy.promotable) {
    const auto bound = copy.bound.find(place);
    if (bound != copy.bound.end() && older(bound->second)) {
      Object(fmt::format(
          "P2: copy {} shows store {} and has {} (durably {}) in word {} of file {:#x}, but {} was "
          "acknowledged before that store",
          index, copy.newest, visible, durable, place.second, Raw(place.first), bound->second));
    }
  }
}

}  // namespace pmirror::sim
