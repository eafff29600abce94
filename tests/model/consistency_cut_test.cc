// SPDX-License-Identifier: BSD-3-Clause
// RPO > 0: a volume-wide cut through the capture logs of several processes (docs/internals/rpo.md, C1 and C2).
//
// Word 0 is a program's undo record, word 1 what depends on it. A stores u, syncs it, stores d, stores u again and syncs that. B, in another
// process with another log, syncs both words. The daemon cuts twice while they run, and once when they are done. After each cut the
// replica's image must be legal (d only with u), never older than before, and at the end hold all that was synced.
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "tests/model/enumerate.h"

namespace pmirror::model {
namespace {

constexpr int kSlots = 6;  // of a log: every attempt uses a new one
enum Phase : uint8_t { kFree, kReserved, kCommitted, kRevoked, kTaken };

struct Words {
  uint8_t u = 0;
  uint8_t d = 0;
};

struct Slot {
  uint8_t phase = kFree;
  uint8_t number = 0;
  uint8_t has_d = 0;  // the capture is of both words
  Words image;
};

struct Sync {
  uint8_t pc = 0;
  uint8_t slot = 0;  // that is in use; the next one after it
  uint8_t number = 0;
  Words image;
};

struct State {
  Words primary;
  Words acknowledged;  // of syncs that returned
  uint8_t clock = 1;
  uint8_t announced = 0;
  uint8_t published = 0;
  std::array<Sync, 2> syncs{};
  std::array<std::array<Slot, kSlots>, 2> logs{};
  uint8_t daemon = 0;
  uint8_t cut = 0;
  uint8_t cuts = 0;
  std::array<uint8_t, 2> passed{};  // bit a slot: taken in this pass
  Words replica;
  uint8_t went_back = 0;
};

struct Rules {
  bool number_before = true;  // else after the copy
  bool only_below = true;     // else the pass takes whatever is committed
  bool revoke = true;
  bool look = true;  // at the cut word, before the commit
  bool announce = true;
};

class Cut {
 public:
  explicit Cut(Rules rules) : rules_(rules) {}

  Model<State> Build() {
    AddA();
    AddB();
    AddDaemon();
    model_.always = [](const State& s) -> std::string {
      if (s.replica.d != 0 && s.replica.u == 0) {
        return "the replica's image has d without u";
      }
      return s.went_back != 0 ? "a batch undoes what an earlier one had brought" : "";
    };
    model_.at_end = [](const State& s) -> std::string {
      if (s.daemon != kFinished || s.syncs[0].pc != kFinished || s.syncs[1].pc != kFinished) {
        return "somebody waits for ever";
      }
      return s.replica.u < s.acknowledged.u || s.replica.d < s.acknowledged.d
                 ? "an acknowledged store never arrives"
                 : "";
    };
    model_.describe = [](const State& s) {
      return "clock " + std::to_string(s.clock) + " u " + std::to_string(s.primary.u) + " d " +
             std::to_string(s.primary.d) + " replica " + std::to_string(s.replica.u) +
             std::to_string(s.replica.d) + " cut " + std::to_string(s.cut);
    };
    return model_;
  }

 private:
  static Slot& Mine(State& s, size_t i) { return s.logs[i][s.syncs[i].slot]; }

  static void AddNumber(Process<State>& p, size_t i) {
    p.Do("takes its number", [i](State& s) {
      s.syncs[i].number = s.clock++;
      return kNext;
    });
  }

  // A capture, from the reservation to the commit.
  void AddCapture(Process<State>& p, size_t i, bool both) {
    const Flow again = p.Here();
    const auto repeat = [i, again](State& s) {
      Sync& me = s.syncs[i];
      if (me.slot + 1 == kSlots) {
        return kBlocked;  // a longer history than this model looks at
      }
      if (Mine(s, i).phase == kReserved) {
        Mine(s, i).phase = kTaken;
      }
      me = {.pc = me.pc, .slot = static_cast<uint8_t>(me.slot + 1), .image = {}};
      return again;
    };
    p.Do("reserves a slot", [i](State& s) {
      Mine(s, i).phase = kReserved;
      return kNext;
    });
    if (rules_.number_before) {
      AddNumber(p, i);
    }
    p.Do("copies u", [i](State& s) {
      s.syncs[i].image.u = s.primary.u;
      return kNext;
    });
    if (both) {
      p.Do("copies d", [i](State& s) {
        s.syncs[i].image.d = s.primary.d;
        return kNext;
      });
    }
    if (!rules_.number_before) {
      AddNumber(p, i);
    }
    if (rules_.look) {
      p.Do("looks at the cut word", [i, repeat](State& s) {
        return s.published > s.syncs[i].number ? repeat(s) : s.announced != 0 ? kBlocked : kNext;
      });
    }
    p.Do("commits", [i, both, repeat](State& s) {
      Sync& me = s.syncs[i];
      Slot& slot = Mine(s, i);
      if (slot.phase == kRevoked) {
        return repeat(s);
      }
      slot = {.phase = kCommitted, .number = me.number, .has_d = both, .image = me.image};
      s.acknowledged.u = std::max(s.acknowledged.u, me.image.u);
      s.acknowledged.d = both ? std::max(s.acknowledged.d, me.image.d) : s.acknowledged.d;
      me = {.pc = me.pc, .slot = static_cast<uint8_t>(me.slot + 1), .image = {}};
      return kNext;
    });
  }

  void AddA() {
    Process<State> p(model_, "A", [](State& s) -> uint8_t& { return s.syncs[0].pc; });
    p.Do("stores u", [](State& s) {
      s.primary.u = 1;
      return kNext;
    });
    AddCapture(p, 0, false);
    p.Do("stores d, and u again", [](State& s) {
      s.primary = {.u = 2, .d = 1};
      return kNext;
    });
    AddCapture(p, 0, false);
    p.End();
  }

  void AddB() {
    Process<State> p(model_, "B", [](State& s) -> uint8_t& { return s.syncs[1].pc; });
    AddCapture(p, 1, true);
    p.End();
  }

  void AddDaemon() {
    Process<State> p(model_, "daemon", [](State& s) -> uint8_t& { return s.daemon; });
    const Flow again = p.Here();
    if (rules_.announce) {
      p.Do("announces a cut", [](State& s) {
        // The last cut is made when all is quiet.
        if (s.cuts == 2 && (s.syncs[0].pc != kFinished || s.syncs[1].pc != kFinished)) {
          return kBlocked;
        }
        s.announced = 1;
        return kNext;
      });
    }
    p.Do("takes its number", [this](State& s) {
      if (!rules_.announce && s.cuts == 2 && (s.syncs[0].pc != kFinished || s.syncs[1].pc != kFinished)) {
        return kBlocked;
      }
      s.cut = s.clock++;
      return kNext;
    });
    p.Do("publishes it", [](State& s) {
      s.published = s.cut;
      s.announced = 0;
      return kNext;
    });
    for (size_t i = 0; i < 2; ++i) {
      p.Do(i == 0 ? "passes over A's log" : "passes over B's log", [this, i](State& s) {
        for (int slot = 0; slot < kSlots; ++slot) {
          Slot& it = s.logs[i][slot];
          if (it.phase == kReserved && rules_.revoke) {
            it.phase = kRevoked;
          } else if (it.phase == kCommitted && (it.number < s.cut || !rules_.only_below)) {
            s.passed[i] |= static_cast<uint8_t>(1 << slot);
          }
        }
        return kNext;
      });
    }
    p.Do("makes the batch, and the replica applies it", [again](State& s) {
      std::vector<Slot> batch;
      for (size_t i = 0; i < 2; ++i) {
        for (int slot = 0; slot < kSlots; ++slot) {
          if ((s.passed[i] & 1 << slot) != 0) {
            batch.push_back(s.logs[i][slot]);
            s.logs[i][slot] = {.phase = kTaken, .image = {}};
          }
        }
      }
      s.passed = {};
      std::sort(batch.begin(), batch.end(), [](const Slot& a, const Slot& b) { return a.number < b.number; });
      const Words before = s.replica;
      for (const Slot& slot : batch) {
        s.replica.u = slot.image.u;
        s.replica.d = slot.has_d != 0 ? slot.image.d : s.replica.d;
      }
      s.went_back |= s.replica.u < before.u || s.replica.d < before.d ? 1 : 0;
      return ++s.cuts == 3 ? kDone : again;
    });
  }

  Rules rules_;
  Model<State> model_;
};

TEST(ConsistencyCut, P2_EveryBatchLeavesALegalImageAndNothingGoesBack) { ExpectHolds(Cut({}).Build()); }

constexpr char kWithout[] = "d without u";
constexpr char kBack[] = "undoes what an earlier";
void Loses(Rules rules, const char* what) { ExpectLoses(Cut(rules).Build(), what); }

TEST(ConsistencyCut, ANumberAfterTheCopyLaysTheOldOverTheNew) { Loses({.number_before = false}, kWithout); }
TEST(ConsistencyCut, TakingWhateverIsCommittedCutsBetweenAStoreAndItsUndoRecord) {
  Loses({.only_below = false}, kWithout);
}
TEST(ConsistencyCut, ReservedSlotsLeftAloneAreCommittedBehindTheCut) { Loses({.revoke = false}, kBack); }
TEST(ConsistencyCut, WithoutALookAtTheCutWordACaptureEnclosesTheCut) { Loses({.look = false}, kWithout); }
TEST(ConsistencyCut, ACutThatIsNotAnnouncedIsEnclosedByACapture) { Loses({.announce = false}, kWithout); }

}  // namespace
}  // namespace pmirror::model
