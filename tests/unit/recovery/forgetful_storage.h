// SPDX-License-Identifier: BSD-3-Clause
// A storage in memory that forgets at a power cut what was not flushed (trap 18), as bad as log_storage.h allows.
//
// Of what no Sync() covered, any part survives: every 512-byte sector for itself as it was after any of its writes, or torn inside; the
// size likewise, also without the bytes it promises (then zeros, or what a removed file had there). Of the changes of names that no
// SyncDirectory() covered the first few survive, in their order. A failed sync gives the pages up: no later sync covers them. All names are in
// one directory.
//
// What survives is asked of a Chooser: EveryChoice enumerates all of it, RandomChoice draws. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "recovery/log_storage.h"

namespace pmirror::recovery {

class Chooser {
 public:
  virtual ~Chooser() = default;
  virtual size_t Choose(size_t options) = 0;  // below `options`
};

class RandomChoice : public Chooser {
 public:
  explicit RandomChoice(uint64_t seed) : random_(seed) {}
  size_t Choose(size_t options) override { return options < 2 ? 0 : random_() % options; }

 private:
  std::mt19937_64 random_;
};

// EveryChoice every;
// do { ... every.Choose(n) ... } while (every.Next());
// runs the body with every sequence of choices that it can ask for.
class EveryChoice : public Chooser {
 public:
  size_t Choose(size_t options) override {
    if (at_ == taken_.size()) {
      taken_.push_back({0, options});
    }
    return taken_[at_++].chosen;
  }
  bool Next() {
    taken_.resize(at_);
    at_ = 0;
    while (!taken_.empty() && taken_.back().chosen + 1 >= taken_.back().options) {
      taken_.pop_back();
    }
    if (!taken_.empty()) {
      ++taken_.back().chosen;
    }
    return !taken_.empty();
  }

 private:
  struct Taken {
    size_t chosen;
    size_t options;
  };
  std::vector<Taken> taken_;
  size_t at_ = 0;
};

class ForgetfulStorage : public LogStorage {
 public:
  static constexpr size_t kSector = 512;
  static constexpr uint64_t kNever = UINT64_MAX;

  absl::StatusOr<std::unique_ptr<LogFile>> Open(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<LogFile>> Create(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& path) override;

  // Operations so far that change or flush something; the next has this number.
  uint64_t operations() const;
  // The power is off before that operation: it and every later one does nothing and fails (kUnavailable).
  void CutBefore(uint64_t operation);
  // That operation fails: of a write half is done, a sync gives up what it should have flushed.
  void FailAt(uint64_t operation);
  // No file can grow: kResourceExhausted, with half of what did not fit written.
  void SetFull(bool full);
  // Reading gives kDataLoss.
  void SetUnreadable(bool unreadable);

  // A storage with what a power cut now leaves, all of it durable.
  std::unique_ptr<ForgetfulStorage> AfterPowerCut(Chooser& chooser) const;

  // What a reader sees of a file; empty when there is none.
  std::string Content(const std::string& path) const;
  // Durably.
  void SetContent(const std::string& path, const std::string& content);

 private:
  friend class ForgetfulFile;
  struct Sector {
    std::vector<std::string> later;  // as it was after each write that no sync covers
    bool dirty = false;              // the next sync writes it
  };
  struct Inode {
    std::string visible;
    std::string durable;                 // as long as its durable size
    std::map<uint64_t, Sector> sectors;  // that may differ from durable
    std::vector<uint64_t> sizes;         // that it had since the size was durable
    bool size_dirty = false;
  };
  using Names = std::map<std::string, std::shared_ptr<Inode>>;

  // The start of every operation that counts. OK, or why it fails. `fault`: it fails by FailAt.
  absl::Status Begin(bool& fault);
  absl::Status Write(Inode& inode, uint64_t offset, std::span<const std::byte> bytes);
  absl::Status Truncate(Inode& inode, uint64_t size);
  absl::Status Sync(Inode& inode);
  void Renamed() { later_names_.push_back(names_); }
  void Store(Inode& inode, uint64_t offset, std::string_view bytes);
  static void Resize(Inode& inode, uint64_t size);
  static void Remember(Inode& inode, uint64_t from, uint64_t to);
  std::shared_ptr<Inode> Survivor(const Inode& inode, Chooser& chooser) const;
  std::string SurvivingSector(const Inode& inode, uint64_t number, const Sector& sector, bool stale,
                              Chooser& chooser) const;

  mutable std::mutex mutex_;  // guards everything below
  Names names_;
  Names durable_names_;
  std::vector<Names> later_names_;  // after each change that no sync of the directory covers
  bool names_dirty_ = false;
  std::string stale_;  // what the last file had that lost its name: its blocks may be given to another
  uint64_t operations_ = 0;
  uint64_t cut_ = kNever;
  uint64_t fail_ = kNever;
  bool full_ = false;
  bool unreadable_ = false;
};

}  // namespace pmirror::recovery
