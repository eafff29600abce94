// SPDX-License-Identifier: BSD-3-Clause
// Trap 16: the in-sync set changes while a sync is under way. A member is lost and dropped, a joiner drains
// its dirty map and becomes a member, its announcement may be withdrawn and made again.
// docs/internals/capture-order.md has the argument.
//
// One page; replica M is a member, J joins. The property is about promotion: whatever the arbiter would make
// primary has every byte of every sync that returned. Order numbers are left out (images only grow), they
// have models of their own.
#include <array>
#include <string>

#include "tests/model/enumerate.h"

namespace pmirror::model {
namespace {

constexpr int kReplicas = 2;
constexpr uint8_t kM = 0b01;
constexpr uint8_t kJ = 0b10;

struct Syncer {
  uint8_t pc = 0;
  uint8_t rounds = 0;
  uint8_t must = 0;
  uint8_t dirty = 0;
  uint8_t image = 0;
  uint8_t waits = 0;    // the other's ticket was open after the scan
  uint8_t version = 0;  // of the set that was read
  uint8_t targets = 0;
  uint8_t flying = 0;
  uint8_t acknowledged = 0;
};

struct State {
  uint8_t primary = 0;
  uint8_t dirty = 0;
  std::array<uint8_t, 2> ticket{};
  std::array<Syncer, 2> syncers{};  // A stores and syncs, B syncs what A stored
  // The epoch page.
  uint8_t version = 0;
  uint8_t members = kM;
  uint8_t joiners = 0;
  // Elsewhere.
  uint8_t arbiter = kM;   // whom it would make primary
  uint8_t dirty_map = 1;  // of J: something it may not have
  uint8_t alive = kM | kJ;
  uint8_t withdrawals = 0;  // that may still happen
  uint8_t joining_pc = 0;
  uint8_t dropping_pc = 0;
  uint8_t draining = 0;  // image under way to J
  std::array<uint8_t, kReplicas> replica{};
  uint8_t acknowledged = 0;  // stores of syncs that returned
};

struct Rules {
  bool reread = true;
  bool announce_before_drain = true;
  bool record_before_reread = true;
  bool record = true;
  bool wait_for_joiner = true;
  bool clear_before_copy = true;  // the drain clears the map, then copies
  bool arbiter_first = true;      // a member is dropped there before it is dropped here
  bool close_after_reread = true;
};

struct Setup {
  std::array<uint8_t, 2> rounds = {2, 0};
  bool join = true;
  bool drop = false;
  uint8_t withdrawals = 0;
};

class InSyncSet {
 public:
  InSyncSet(Rules rules, Setup setup) : rules_(rules), setup_(setup) {}

  Model<State> Build() {
    model_.initial.withdrawals = setup_.withdrawals;
    for (size_t i = 0; i < 2; ++i) {
      model_.initial.syncers[i].rounds = setup_.rounds[i];
      model_.initial.syncers[i].pc = setup_.rounds[i] == 0 ? kFinished : 0;
      AddSyncer(i);
      AddDelivery(i);
    }
    if (setup_.join) {
      AddJoin();
    }
    if (setup_.drop) {
      AddDrop();
    }
    model_.always = [](const State& s) -> std::string {
      for (int r = 0; r < kReplicas; ++r) {
        if ((s.arbiter & 1 << r) != 0 && (s.acknowledged & ~s.replica[r]) != 0) {
          return std::string(r == 0 ? "M" : "J") +
                 " could become primary without a store that was acknowledged";
        }
      }
      return "";
    };
    model_.at_end = [](const State& s) {
      return std::string(
          s.syncers[0].pc == kFinished && s.syncers[1].pc == kFinished ? "" : "a sync waits for ever");
    };
    model_.describe = Describe;
    return model_;
  }

 private:
  void AddSyncer(size_t i) {
    Process<State> p(model_, i == 0 ? "A" : "B", [i](State& s) -> uint8_t& { return s.syncers[i].pc; });
    p.Do(i == 0 ? "stores, and calls msync" : "calls msync", [i](State& s) {
      if (i == 0) {
        s.primary = static_cast<uint8_t>(s.primary << 1 | 1);
        s.dirty = 1;
      }
      s.syncers[i].must = s.primary;
      return kNext;
    });
    p.Do("opens its ticket", [i](State& s) {
      s.ticket[i] = 1;
      return kNext;
    });
    p.Do("scans and protects", [i](State& s) {
      s.syncers[i].dirty = s.dirty;
      s.dirty = 0;
      return kNext;
    });
    p.Do("copies, and looks at the other's ticket", [i](State& s) {
      s.syncers[i].image = s.syncers[i].dirty != 0 ? s.primary : 0;
      s.syncers[i].waits = s.ticket[1 - i];
      return kNext;
    });
    const Flow again = p.Here();
    p.Do("reads the in-sync set", [this, i](State& s) {
      Syncer& me = s.syncers[i];
      me.version = s.version;
      me.targets = me.dirty != 0 ? s.members | s.joiners : 0;
      return kNext;
    });
    if (rules_.record_before_reread) {
      AddRecord(p, i);
    }
    p.Do("sends", [i](State& s) {
      Syncer& me = s.syncers[i];
      me.flying |= me.targets & ~me.acknowledged;
      return kNext;
    });
    p.Do("has the acknowledgements", [this, i](State& s) {
      const Syncer& me = s.syncers[i];
      const uint8_t needed = rules_.wait_for_joiner ? me.targets : me.targets & s.members;
      return (needed & ~me.acknowledged) == 0 ? kNext : kBlocked;
    });
    p.Or("sees that the set moved while it waits", [i, again](State& s) {
      const Syncer& me = s.syncers[i];
      return s.version != me.version && (me.targets & ~me.acknowledged) != 0 ? again : kBlocked;
    });
    if (!rules_.close_after_reread) {
      AddClose(p, i);
    }
    if (rules_.reread) {
      p.Do("reads the set version again",
           [i, again](State& s) { return s.version == s.syncers[i].version ? kNext : again; });
    }
    if (!rules_.record_before_reread) {
      AddRecord(p, i);
    }
    if (rules_.close_after_reread) {
      AddClose(p, i);
    }
    p.Do("has waited for the other's ticket, and returns", [i](State& s) {
      Syncer& me = s.syncers[i];
      if (me.waits != 0 && s.ticket[1 - i] != 0) {
        return kBlocked;
      }
      s.acknowledged |= me.must;
      const uint8_t rounds = me.rounds - 1;
      const uint8_t pc = me.pc;
      me = {.pc = pc, .rounds = rounds};
      return rounds == 0 ? kDone : 0;
    });
  }

  void AddRecord(Process<State>& p, size_t i) {
    p.Do("records its range for who is neither member nor joiner", [this, i](State& s) {
      const Syncer& me = s.syncers[i];
      s.dirty_map |= rules_.record && me.dirty != 0 && (me.targets & kJ) == 0 ? 1 : 0;
      return kNext;
    });
  }

  static void AddClose(Process<State>& p, size_t i) {
    p.Do("closes its ticket", [i](State& s) {
      s.ticket[i] = 0;
      return kNext;
    });
  }

  void AddDelivery(size_t i) {
    for (int r = 0; r < kReplicas; ++r) {
      const std::string name = r == 0 ? "M" : "J";
      model_.Anytime(name, std::string("applies and acknowledges the frame of ") + (i == 0 ? "A" : "B"),
                     [i, r](State& s) {
                       Syncer& sender = s.syncers[i];
                       const auto bit = static_cast<uint8_t>(1 << r);
                       if ((sender.flying & s.alive & bit) == 0) {
                         return false;
                       }
                       sender.flying &= ~bit;
                       sender.acknowledged |= bit;
                       s.replica[r] |= sender.image;
                       return true;
                     });
    }
  }

  void AddJoin() {
    Process<State> p(model_, "daemon", [](State& s) -> uint8_t& { return s.joining_pc; });
    const Flow start = p.Here();
    AddDrain(p, p.Here() + 2);  // a first pass beside live traffic
    if (rules_.announce_before_drain) {
      AddAnnounce(p);
    }
    const Flow drain = p.Here();
    const Flow drained = drain + 2;
    AddDrain(p, drained, drain);
    if (!rules_.announce_before_drain) {
      AddAnnounce(p);
    }
    p.Do("makes J a member", [](State& s) {
      s.members |= kJ;
      s.joiners = 0;
      ++s.version;
      return kNext;
    });
    if (setup_.withdrawals != 0) {
      p.Or("withdraws the announcement of J", [start](State& s) {
        if (s.withdrawals == 0) {
          return kBlocked;
        }
        --s.withdrawals;
        s.joiners = 0;
        ++s.version;
        return start;
      });
    }
    p.Do("adds J at the arbiter", [](State& s) {
      s.arbiter |= kJ;
      return kNext;
    });
    p.End();
  }

  void AddAnnounce(Process<State>& p) {
    p.Do("announces J as joiner", [](State& s) {
      s.joiners = kJ;
      ++s.version;
      return kNext;
    });
  }

  // One pass over the dirty map; to `empty` when there is nothing in it, else on, or back to `again`.
  void AddDrain(Process<State>& p, Flow empty, Flow again = kNext) {
    const bool clear_first = rules_.clear_before_copy;
    p.Do(clear_first ? "takes what J's dirty map holds" : "copies what J's dirty map holds", [=](State& s) {
      if (s.dirty_map == 0) {
        return empty;
      }
      s.dirty_map = clear_first ? 0 : 1;
      s.draining = clear_first ? 0 : s.primary;
      return kNext;
    });
    p.Do(clear_first ? "copies it to J" : "clears the map; J has the copy", [=](State& s) {
      s.replica[1] |= clear_first ? s.primary : s.draining;
      s.dirty_map = clear_first ? s.dirty_map : 0;
      s.draining = 0;
      return again;
    });
  }

  void AddDrop() {
    model_.Anytime("M", "is lost", [](State& s) {
      const bool was_alive = (s.alive & kM) != 0;
      s.alive &= ~kM;
      return was_alive;
    });
    Process<State> p(model_, "daemon", [](State& s) -> uint8_t& { return s.dropping_pc; });
    const auto at_arbiter = [](State& s) {
      s.arbiter &= ~kM;
      return kNext;
    };
    const auto on_page = [](State& s) {
      s.members &= ~kM;
      ++s.version;
      return kNext;
    };
    p.Do("notices that M is lost", [](State& s) { return (s.alive & kM) == 0 ? kNext : kBlocked; });
    if (rules_.arbiter_first) {
      p.Do("drops M at the arbiter", at_arbiter).Do("drops M from the page", on_page);
    } else {
      p.Do("drops M from the page", on_page).Do("drops M at the arbiter", at_arbiter);
    }
    p.End();
  }

  static std::string Describe(const State& s) {
    const auto set = [](uint8_t bits) { return std::string(bits & kM ? "M" : "") + (bits & kJ ? "J" : ""); };
    return "v" + std::to_string(s.version) + " members " + set(s.members) + " joiners " + set(s.joiners) +
           " arbiter " + set(s.arbiter) + " stored " + std::to_string(s.primary) + " map " +
           std::to_string(s.dirty_map) + " M " + std::to_string(s.replica[0]) + " J " +
           std::to_string(s.replica[1]);
  }

  Rules rules_;
  Setup setup_;
  Model<State> model_;
};

void Holds(Rules rules, Setup setup) { ExpectHolds(InSyncSet(rules, setup).Build()); }
void Loses(Rules rules, Setup setup, const char* what) { ExpectLoses(InSyncSet(rules, setup).Build(), what); }

constexpr char kJoinerMisses[] = "J could become primary without";

TEST(Trap16InSyncSet, JoinerMissesNoAcknowledgedByte) {
  Holds({}, {.withdrawals = 1});
  Holds({}, {.rounds = {3, 0}});
}
TEST(Trap16InSyncSet, JoinerMissesNoByteThatAnotherThreadWaitedFor) {
  Holds({}, {.rounds = {2, 2}, .withdrawals = 1});
}
TEST(Trap16InSyncSet, LostMemberIsDroppedWhileAnotherJoins) {
  Holds({}, {.rounds = {1, 1}, .drop = true});
  Holds({}, {.rounds = {2, 0}, .drop = true, .withdrawals = 1});
}
TEST(Trap16InSyncSet, WithoutReadingTheVersionAgainAJoinerMissesBytes) {
  Loses({.reread = false}, {}, kJoinerMisses);
}
TEST(Trap16InSyncSet, AnnouncingTheJoinerAfterItsDrainMissesBytes) {
  Loses({.announce_before_drain = false}, {}, kJoinerMisses);
}
TEST(Trap16InSyncSet, RecordingTheRangeAfterReadingTheVersionAgainMissesBytes) {
  Loses({.record_before_reread = false}, {}, kJoinerMisses);
}
TEST(Trap16InSyncSet, NotRecordingForWhoIsNeitherMissesBytes) { Loses({.record = false}, {}, kJoinerMisses); }
TEST(Trap16InSyncSet, NotWaitingForAnAnnouncedJoinerMissesBytes) {
  Loses({.wait_for_joiner = false}, {}, kJoinerMisses);
}
TEST(Trap16InSyncSet, ClearingTheDirtyMapAfterTheCopyMissesBytes) {
  Loses({.clear_before_copy = false}, {}, kJoinerMisses);
}
TEST(Trap16InSyncSet, DroppingAMemberBeforeTheArbiterDoesLeavesAPrimaryWithoutBytes) {
  Loses({.arbiter_first = false}, {.join = false, .drop = true}, "M could become primary without");
}
// Trap 2 meets trap 16: the other thread's frame is acknowledged by the members that its owner knew of.
TEST(Trap16InSyncSet, ClosingTheTicketBeforeTheVersionIsReadAgainMissesBytes) {
  Loses({.close_after_reread = false}, {.rounds = {1, 1}}, kJoinerMisses);
}

}  // namespace
}  // namespace pmirror::model
