// SPDX-License-Identifier: BSD-3-Clause
// A mark map under a program's hands, with an oracle beside it: what was promised, and what could legally be forgotten. The same steps run on any
// storage, whose power may go at any operation.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "recovery/mark_map.h"
#include "tests/unit/recovery/forgetful_storage.h"

namespace pmirror::recovery {

inline constexpr size_t kReplicas = 2;
inline const std::string kMapPath = "state/v0.marks";

inline MarkIdentity TestIdentity() {
  MarkIdentity identity{.volume = {}, .generation = 7, .replicas = {"n2", "n3"}};
  identity.volume[0] = std::byte{1};
  return identity;
}

// One life after the other of the primary's daemon. The oracle survives all of them.
class MarkHistory {
 public:
  // A new life on `storage`, which must outlive it. False when the storage failed.
  bool Mount(ForgetfulStorage& storage) {
    map_.reset();
    settle_.reset();
    in_use_.clear();
    gone_.clear();
    auto opened = MarkMap::Open(kMapPath, TestIdentity(), mount_ + 1, storage);
    if (!opened.ok()) {
      return false;
    }
    ++mount_;  // the volume's record says so from here on
    map_ = std::move(opened->map);
    EXPECT_EQ(opened->doubt, "");
    Check();
    return true;
  }
  void Unmount() {
    map_.reset();
    settle_.reset();
  }
  // What the oracle knows, for another continuation. Requires: nothing is mounted.
  MarkHistory Copied() const {
    MarkHistory copy;
    copy.mount_ = mount_;
    copy.copies_ = copies_;
    copy.possible_ = possible_;
    return copy;
  }

  void Use(uint64_t file) {
    in_use_.insert(file);
    gone_.erase(file);
    touched_.insert(file);
    possible_.insert(file);
    if (map_->Mark(FileId{file}).ok()) {
      for (Copy& copy : copies_) {
        copy.promised.insert(file);
        copy.promised_once.insert(file);
        copy.cleared_in.erase(file);
      }
    }
  }
  void Close(uint64_t file) { in_use_.erase(file); }
  void Begin() {
    settled_.clear();
    for (const uint64_t file : possible_) {
      if (!in_use_.contains(file)) {
        settled_.insert(file);
      }
    }
    gone_settled_ = gone_;
    touched_.clear();
    all_touched_ = 0;
    settle_ = map_->BeginSettle([&](FileId file) { return in_use_.contains(Raw(file)); });
  }
  void End(uint8_t replicas) {
    if (settle_) {
      Allow(replicas);
      map_->EndSettle(*settle_, replicas);
      settle_.reset();
    }
  }
  void Resynced(size_t replica) {
    if (settle_) {
      Allow(static_cast<uint8_t>(1U << replica));
      if ((all_touched_ >> replica & 1) == 0) {
        copies_[replica].all_promised = false;
      }
      (void)map_->Resynced(replica, *settle_);
      settle_.reset();
    }
  }
  void MarkAll(size_t replica) {
    all_touched_ |= static_cast<uint8_t>(1U << replica);
    if (map_->MarkAll(replica).ok()) {
      copies_[replica].all_promised = true;
    }
  }
  void Forget(uint64_t file) {
    if (!in_use_.contains(file)) {
      gone_.insert(file);
      map_->Forget(FileId{file});
    }
  }
  void Flush() { (void)map_->Flush(); }

  // What the map says now covers what was promised, and a mark that is gone is gone for a reason that the base names.
  void Check() {
    for (size_t i = 0; i < kReplicas; ++i) {
      const Copy& copy = copies_[i];
      const bool all = map_->AllMarked(i);
      EXPECT_TRUE(all || !copy.all_promised) << "replica " << i << " lost that everything is marked";
      std::set<uint64_t> marked;
      for (const FileId file : map_->Marked(i)) {
        EXPECT_TRUE(possible_.contains(Raw(file))) << "file " << Raw(file) << " was never used";
        marked.insert(Raw(file));
      }
      for (const uint64_t file : copy.promised) {
        EXPECT_TRUE(marked.contains(file)) << "file " << file << " of replica " << i << " lost its mark";
      }
      for (const uint64_t file : copy.promised_once) {
        if (const auto found = copy.cleared_in.find(file);
            !marked.contains(file) && found != copy.cleared_in.end()) {
          EXPECT_GE(map_->base_mount(i), found->second) << "file " << file << " of replica " << i;
          EXPECT_TRUE(all || !map_->NamesEverything(i, found->second - 1));
        }
      }
      EXPECT_TRUE(map_->NamesEverything(i, mount_));
    }
  }

 private:
  struct Copy {
    std::set<uint64_t> promised;       // Mark() was OK, nothing cleared it
    std::set<uint64_t> promised_once;  // Mark() was OK
    std::map<uint64_t, uint64_t>
        cleared_in;            // the first mount since the last Mark in which it could be cleared
    bool all_promised = true;  // a new map has everything marked
  };

  // The settle that began may clear these from now on; a crash may lose that.
  void Allow(uint8_t replicas) {
    for (const uint64_t file : settled_) {
      if (touched_.contains(file)) {
        continue;
      }
      const bool gone = gone_settled_.contains(file);
      for (size_t i = 0; i < kReplicas; ++i) {
        const bool cleared = ((replicas >> i & 1) != 0 || gone) && copies_[i].promised.erase(file) != 0;
        if (gone) {
          copies_[i].cleared_in.erase(file);  // needs no base: there is nothing to compare
        } else if (cleared) {
          copies_[i].cleared_in[file] = mount_;
        }
      }
    }
  }

  std::unique_ptr<MarkMap> map_;
  std::optional<MarkMap::Settle> settle_;
  uint64_t mount_ = 0;
  std::array<Copy, kReplicas> copies_;
  std::set<uint64_t> possible_;  // Mark() was called
  std::set<uint64_t> in_use_;
  std::set<uint64_t> gone_;
  std::set<uint64_t> settled_;       // not in use when the settle began
  std::set<uint64_t> gone_settled_;  // gone when it began
  std::set<uint64_t> touched_;       // Mark() was called since
  uint8_t all_touched_ = 0;          // MarkAll() was called since
};

}  // namespace pmirror::recovery
