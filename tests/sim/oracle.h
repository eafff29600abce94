// SPDX-License-Identifier: BSD-3-Clause
// Knows every store and every sync, and nothing of the implementation: it looks at what programs were told and at the disks.
//
// Every stored word is the stamp of its store, so that a word of an image says when it was stored. Let `required` of a word be
// the newest store that some sync has acknowledged.
//
//   P3  every word of a copy that counts (and of the primary itself) is at least the required one, visibly and durably
//   P2  a copy that may be promoted is one that a power cut of the primary could have left: there is a moment T, not before any
//       store that the copy shows, such that every word is at least what was required at T. Visible and durable bytes may mix.
//       Words are never torn: every word of an image was stored as it is, at its place
//   P1  without the policy proceed, a sync that succeeded is on every configured replica, durably
//   P6  no sync takes longer than the policy allows
//   P5  is judged at the end by the simulation: after healing everything, all copies are equal and count
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/sim/disk.h"
#include "tests/sim/world.h"

namespace pmirror::sim {

class Oracle {
 public:
  explicit Oracle(World& world) : world_(world) {}

  // Index 0 is the primary, 1 the first replica.
  void AddCopy(Disk& disk) { copies_.push_back({.disk = &disk}); }

  // --- what happens on the primary ---
  void Stored(FileId file, uint64_t word, uint64_t value);
  void Resized(FileId file, uint64_t old_size, uint64_t new_size);
  void Removed(FileId file);
  // A power cut has put words back: what no sync had acknowledged may be gone.
  void PrimaryReverted();
  struct SyncToken {
    uint64_t id = 0;
  };
  SyncToken SyncBegins(FileId file, uint64_t first_word, uint64_t end_word, Time allowed);
  void SyncReturned(SyncToken token, bool success);
  void SyncDied(SyncToken token) { running_.erase(token.id); }

  // --- what copies say of themselves ---
  // Somebody would take it for one that has everything.
  void Counts(size_t copy, bool counts) { copies_[copy].counts = counts; }
  // It would let itself be promoted.
  void Promotable(size_t copy, bool promotable);
  // Bytes went back: what was seen in it does not bind any more.
  void Reverted(size_t copy);

  // Looks at everything. Empty: all is well; else what is wrong, which stays so.
  const std::string& Check();
  void CheckCopy(size_t copy);
  const std::string& wrong() const { return wrong_; }
  void Object(std::string what);
  uint64_t acknowledged() const { return acknowledged_; }

 private:
  using Place = std::pair<FileId, uint64_t>;
  struct Word {
    uint64_t required = 0;
    uint64_t newest = 0;     // stamp of the last change
    uint64_t last_zero = 0;  // of the last time it became 0
    std::vector<uint64_t> values;
  };
  struct Running {
    FileId file{};
    std::vector<std::pair<uint64_t, uint64_t>> covers;  // word, stamp
    Time late = 0;
  };
  struct Returned {
    uint64_t at = 0;
    FileId file{};
    std::vector<std::pair<uint64_t, uint64_t>> covers;
  };
  struct Copy {
    Disk* disk = nullptr;
    bool counts = false;
    bool promotable = false;
    uint64_t newest = 0;                // store that it shows
    size_t folded = 0;                  // returned_[0..folded) were before that
    std::map<Place, uint64_t> bound{};  // what these require
  };

  uint64_t StampOf(const Word& word, uint64_t value) const { return value != 0 ? value : word.last_zero; }
  void EverybodyHas(const Running& sync);
  void CheckWord(size_t index, Copy& copy, const Place& place, const Word& word);

  World& world_;
  std::vector<Copy> copies_;
  std::map<FileId, std::map<uint64_t, Word>> words_;
  std::map<uint64_t, Running> running_;
  std::vector<Returned> returned_;
  uint64_t next_sync_ = 1;
  uint64_t acknowledged_ = 0;
  std::string wrong_;
};

}  // namespace pmirror::sim
