// SPDX-License-Identifier: BSD-3-Clause
// Trap 4: somebody else's sync covers process A's stores, also while A is stopped anywhere in a sync of its
// own, or killed. The daemon captures for that somebody (another process, or an fsync that reached the
// daemon): it scans A's page table through A's pagemap descriptor, looks at A's tickets, and copies from the
// backing file.
//
// One page, one word whose bits are A's stores. A makes several syncs, the daemon too, on sessions of their
// own. docs/internals/capture-order.md has the argument.
#include <array>
#include <string>

#include "tests/model/enumerate.h"

namespace pmirror::model {
namespace {

constexpr int kSlots = 2;
constexpr uint8_t kStores = 2;

enum SlotState : uint8_t { kFree, kOpen, kRedo };
enum Flight : uint8_t { kNone, kFlying, kAcknowledged, kFailed };
enum Mapping : uint8_t { kWritable, kReadOnly, kUnmapped };
enum Life : uint8_t { kRunning, kStopped, kDead };

struct Slot {
  uint8_t state = 0;
  uint8_t incarnation = 0;
};

struct Capture {
  uint8_t must = 0;   // stores before the sync began
  uint8_t dirty = 0;  // there is something to send
  uint8_t order = 0;
  uint8_t image = 0;
  uint8_t flight = 0;
  uint8_t redo = 0;  // slots of A whose redo range (or dead ticket) this frame carries
  std::array<uint8_t, kSlots> seen{};
};

struct State {
  uint8_t primary = 0;
  uint8_t dirty = 0;  // in A's page table
  uint8_t mapping = kWritable;
  uint8_t counter = 0;
  uint8_t stores = 0;
  uint8_t life = kRunning;           // of A
  uint8_t suspect = 0;               // A died and what it had mapped has not been captured since
  std::array<Slot, kSlots> slots{};  // A's ticket table, shared with the daemon
  uint8_t daemon_flag =
      0;  // per file, on the volume page: a capture of the daemon is under way, or has failed
  uint8_t failures = 0;
  uint8_t a_pc = 0;
  uint8_t a_slot = 0;
  uint8_t a_rounds = 0;
  Capture a;
  uint8_t d_pc = 0;
  uint8_t d_rounds = 0;
  uint8_t d_suspect = 0;  // this capture covers what a dead A had mapped
  Capture d;
  uint8_t stray_image =
      0;  // a frame of a dead or failed sender that may still arrive; order 0 when there is none
  uint8_t stray_order = 0;
  uint8_t replica = 0;
  uint8_t replica_order = 0;
  uint8_t lost = 0;
};

struct Rules {
  bool scan_foreign = true;
  bool take_open_tickets = true;
  bool take_redo = true;
  bool scan_before_tickets = true;  // the daemon looks at A's tickets after it has scanned A's page table
  bool dead_is_suspect = true;      // the page table of a dead process says nothing
  bool flag = true;                 // the daemon's captures are visible to A
  bool flag_before_scan = true;
  bool read_flag_after_scan = true;
  bool flag_stays_on_failure = true;
  bool hand_over = true;             // munmap leaves what was dirty as a redo range
  bool protect_before_unmap = true;  // against a store by another thread between the last scan and the unmap
  bool wait_for_owner = false;       // the daemon waits for A's open ticket instead of capturing its range
};

struct Setup {
  uint8_t a_rounds = 2;
  uint8_t d_rounds = 2;
  uint8_t failures = 0;
  bool stop = false;
  bool kill = false;
  bool unmap = false;  // A unmaps after its last sync
};

class ForeignCapture {
 public:
  ForeignCapture(Rules rules, Setup setup) : rules_(rules), setup_(setup) {}

  Model<State> Build() {
    model_.initial.failures = setup_.failures;
    model_.initial.a_rounds = setup_.a_rounds;
    model_.initial.d_rounds = setup_.d_rounds;
    AddProcess();
    AddDaemon();
    AddFaults();
    AddReplica();
    model_.always = [](const State& s) {
      return std::string(s.lost != 0 ? "a sync returned success and a store is not on the replica" : "");
    };
    model_.at_end = AtEnd;
    model_.describe = Describe;
    return model_;
  }

 private:
  // Steps of A: none of them runs while it is stopped or dead.
  static Process<State>::Body Alive(Process<State>::Body body) {
    return [body = std::move(body)](State& s) { return s.life == kRunning ? body(s) : kBlocked; };
  }

  void AddProcess() {
    model_.Anytime("A", "stores", [](State& s) {
      if (s.life != kRunning || s.mapping != kWritable || s.stores == kStores) {
        return false;
      }
      s.primary |= 1 << s.stores++;
      s.dirty = 1;
      return true;
    });
    Process<State> p(model_, "A", [](State& s) -> uint8_t& { return s.a_pc; });
    p.Do("calls msync", Alive([](State& s) {
           s.a = {.must = s.primary};
           return kNext;
         }));
    p.Do("opens its ticket", Alive([](State& s) { return OpenTicket(s); }));
    if (!rules_.read_flag_after_scan) {
      AddReadFlag(p);
    }
    p.Do("scans and protects", Alive([](State& s) {
           s.a.dirty |= s.dirty;
           s.dirty = 0;
           return kNext;
         }));
    if (rules_.read_flag_after_scan) {
      AddReadFlag(p);
    }
    p.Do("takes its own redo ranges along", Alive([](State& s) {
           TakeSlots(s, s.a, kRedo);
           return kNext;
         }));
    AddSend(p, &State::a, Alive);
    p.Do("settles its ticket", Alive([](State& s) {
           if (s.a.flight == kAcknowledged) {
             ClearRedo(s, s.a);
           }
           s.slots[s.a_slot].state = s.a.flight == kFailed ? kRedo : kFree;
           return kNext;
         }));
    p.Do("returns", Alive([this](State& s) {
           const Flow flow = Return(s, s.a, s.a_rounds);
           return flow == kDone && setup_.unmap ? kNext : flow;
         }));
    if (setup_.unmap) {
      AddUnmap(p);
    }
  }

  static Flow OpenTicket(State& s) {
    for (uint8_t k = 0; k < kSlots; ++k) {
      if (s.slots[k].state == kFree) {
        s.slots[k] = {kOpen, static_cast<uint8_t>(s.slots[k].incarnation + 1)};
        s.a_slot = k;
        return kNext;
      }
    }
    return kBlocked;
  }

  // munmap, and in the same way exec and exit. Another thread of A may still be storing.
  void AddUnmap(Process<State>& p) {
    if (rules_.protect_before_unmap) {
      p.Do("makes the mapping read-only", Alive([](State& s) {
             s.mapping = kReadOnly;
             return kNext;
           }));
    }
    if (rules_.hand_over) {
      p.Do("opens its ticket", Alive([](State& s) { return OpenTicket(s); }));
      p.Do("scans", Alive([](State& s) {
             s.a.dirty = s.dirty;
             s.dirty = 0;
             return kNext;
           }));
      p.Do("leaves what it found as a redo range", Alive([](State& s) {
             s.slots[s.a_slot].state = s.a.dirty != 0 ? kRedo : kFree;
             return kNext;
           }));
    }
    p.Do("unmaps", Alive([](State& s) {
           s.mapping = kUnmapped;
           s.dirty = 0;
           s.a = {};
           return kNext;
         }));
    p.End();
  }

  void AddReadFlag(Process<State>& p) {
    p.Do("reads the daemon's flag", Alive([this](State& s) {
           s.a.dirty |= rules_.flag ? s.daemon_flag : 0;
           return kNext;
         }));
  }

  void AddDaemon() {
    Process<State> p(model_, "daemon", [](State& s) -> uint8_t& { return s.d_pc; });
    p.Do("is asked to sync the file", [](State& s) {
      s.d = {.must = s.primary};
      s.d_suspect = 0;
      return kNext;
    });
    if (rules_.flag_before_scan) {
      AddRaiseFlag(p);
    }
    if (!rules_.scan_before_tickets) {
      AddLook(p);
    }
    p.Do("scans and protects A's page table", [this](State& s) {
      s.d.dirty |=
          rules_.flag_stays_on_failure ? s.daemon_flag & 2 : 0;  // what its last capture failed to bring over
      if (s.life == kDead) {
        s.d_suspect = rules_.dead_is_suspect ? s.suspect : 0;
        s.d.dirty |= s.d_suspect;
      } else if (rules_.scan_foreign) {
        s.d.dirty |= s.dirty;
        s.dirty = 0;
      }
      return kNext;
    });
    if (!rules_.flag_before_scan) {
      AddRaiseFlag(p);
    }
    if (rules_.scan_before_tickets) {
      AddLook(p);
    }
    AddSend(p, &State::d, [](Process<State>::Body body) { return body; });
    p.Do("settles", [this](State& s) {
      if (s.d.flight == kAcknowledged) {
        ClearRedo(s, s.d);
        s.daemon_flag = 0;
        s.suspect &= ~s.d_suspect;
      } else {
        s.daemon_flag = rules_.flag_stays_on_failure ? 2 : 0;
      }
      return kNext;
    });
    p.Do("answers", [](State& s) { return Return(s, s.d, s.d_rounds); });
  }

  void AddRaiseFlag(Process<State>& p) {
    p.Do("raises the file's capture flag", [](State& s) {
      s.daemon_flag |= 1;
      return kNext;
    });
  }

  void AddLook(Process<State>& p) {
    p.Do("looks at A's tickets", [this](State& s) {
      if (rules_.take_open_tickets) {
        if (rules_.wait_for_owner && (s.slots[0].state == kOpen || s.slots[1].state == kOpen)) {
          return kBlocked;
        }
        TakeSlots(s, s.d, kOpen);
      }
      if (rules_.take_redo) {
        TakeSlots(s, s.d, kRedo);
      }
      return kNext;
    });
  }

  // The range of every slot in that state goes into the capture.
  static void TakeSlots(State& s, Capture& capture, SlotState state) {
    for (uint8_t k = 0; k < kSlots; ++k) {
      if (s.slots[k].state == state) {
        capture.dirty = 1;
        if (state == kRedo || s.life == kDead) {
          capture.redo |= 1 << k;
          capture.seen[k] = s.slots[k].incarnation;
        }
      }
    }
  }

  // Cleared by whoever brought it over, unless it is another one by now.
  static void ClearRedo(State& s, Capture& capture) {
    for (uint8_t k = 0; k < kSlots; ++k) {
      Slot& slot = s.slots[k];
      const bool clearable = slot.state == kRedo || (slot.state == kOpen && s.life == kDead);
      if ((capture.redo & 1 << k) != 0 && clearable && slot.incarnation == capture.seen[k]) {
        slot.state = kFree;
      }
    }
  }

  template <typename Wrap>
  void AddSend(Process<State>& p, Capture State::*capture, Wrap wrap) {
    p.Do("takes the next number", wrap([capture](State& s) {
           (s.*capture).order = (s.*capture).dirty != 0 ? ++s.counter : 0;
           return kNext;
         }));
    p.Do("copies", wrap([capture](State& s) {
           (s.*capture).image = (s.*capture).dirty != 0 ? s.primary : 0;
           return kNext;
         }));
    p.Do("sends", wrap([capture](State& s) {
           (s.*capture).flight = (s.*capture).dirty != 0 ? kFlying : kAcknowledged;
           return kNext;
         }));
    p.Do("has the acknowledgement",
         wrap([capture](State& s) { return (s.*capture).flight == kAcknowledged ? kNext : kBlocked; }));
    for (const bool arrives : {false, true}) {
      p.Or(arrives ? "loses its session; its frame may still arrive" : "loses its session; its frame is lost",
           wrap([capture, arrives](State& s) {
             Capture& mine = s.*capture;
             if (mine.flight != kFlying || s.failures == 0) {
               return kBlocked;
             }
             --s.failures;
             mine.flight = kFailed;
             if (arrives) {
               s.stray_image = mine.image;
               s.stray_order = mine.order;
             }
             return kNext;
           }));
    }
  }

  static Flow Return(State& s, Capture& capture, uint8_t& rounds) {
    if (capture.flight == kAcknowledged && (capture.must & ~s.replica) != 0) {
      s.lost = 1;
    }
    capture = {};
    return --rounds == 0 ? kDone : 0;
  }

  void AddFaults() {
    if (setup_.stop) {
      model_.Anytime("A", "is stopped for good", [](State& s) {
        if (s.life != kRunning) {
          return false;
        }
        s.life = kStopped;
        return true;
      });
    }
    if (!setup_.kill) {
      return;
    }
    for (const bool arrives : {false, true}) {
      model_.Anytime("A", arrives ? "is killed; what it sent may still arrive" : "is killed",
                     [arrives](State& s) {
                       if (s.life == kDead || (arrives && s.a.flight != kFlying)) {
                         return false;
                       }
                       s.life = kDead;
                       s.suspect = 1;
                       s.dirty = 0;  // the page table is gone, and its bits with it
                       if (arrives) {
                         s.stray_image = s.a.image;
                         s.stray_order = s.a.order;
                       }
                       s.a = {};
                       return true;
                     });
    }
  }

  static bool Deliver(State& s, uint8_t image, uint8_t order) {
    if (order > s.replica_order) {
      s.replica = image;
      s.replica_order = order;
    }
    return true;
  }

  void AddReplica() {
    for (Capture State::*capture : {&State::a, &State::d}) {
      model_.Anytime("replica", capture == &State::a ? "applies A's frame" : "applies the daemon's frame",
                     [capture](State& s) {
                       Capture& sent = s.*capture;
                       if (sent.flight != kFlying) {
                         return false;
                       }
                       sent.flight = kAcknowledged;
                       return Deliver(s, sent.image, sent.order);
                     });
    }
    model_.Anytime("replica", "applies the frame of a lost session", [](State& s) {
      if (s.stray_order == 0) {
        return false;
      }
      Deliver(s, s.stray_image, s.stray_order);
      s.stray_order = s.stray_image = 0;
      return true;
    });
  }

  static std::string AtEnd(const State& s) {
    if (s.d_pc != kFinished) {
      return "the other's sync waits for ever";
    }
    if (s.life == kRunning && s.a_pc != kFinished) {
      return "A's sync waits for ever";
    }
    bool known = s.dirty != 0 || s.suspect != 0 || s.daemon_flag != 0;
    for (const Slot& slot : s.slots) {
      known |= slot.state != kFree;
    }
    return s.replica != s.primary && !known ? "the copies differ and nobody knows" : "";
  }

  static std::string Describe(const State& s) {
    std::string out =
        "stored " + std::to_string(s.primary) + " dirty " + std::to_string(s.dirty) + " tickets ";
    for (const Slot& slot : s.slots) {
      out += slot.state == kFree ? "-" : slot.state == kOpen ? "o" : "R";
    }
    return out + " flag " + std::to_string(s.daemon_flag) + " replica " + std::to_string(s.replica) + "#" +
           std::to_string(s.replica_order);
  }

  Rules rules_;
  Setup setup_;
  Model<State> model_;
};

void Holds(Rules rules, Setup setup) { ExpectHolds(ForeignCapture(rules, setup).Build()); }
void Loses(Rules rules, Setup setup, const char* what) {
  ExpectLoses(ForeignCapture(rules, setup).Build(), what);
}

constexpr char kLost[] = "a store is not on the replica";

TEST(Trap4ForeignCapture, KeepsEveryStoreWhileTheOwnerRuns) {
  Holds({}, {});
  Holds({}, {.failures = 2});
}
TEST(Trap4ForeignCapture, KeepsEveryStoreAndNeverWaitsWhileTheOwnerIsStoppedAnywhere) {
  Holds({}, {.failures = 1, .stop = true});
}
TEST(Trap4ForeignCapture, KeepsEveryStoreWhileTheOwnerIsKilledAnywhere) {
  Holds({}, {.failures = 1, .stop = true, .kill = true});
}
TEST(Trap4ForeignCapture, WithoutScanningTheOwnerAStoreIsLost) { Loses({.scan_foreign = false}, {}, kLost); }
TEST(Trap4ForeignCapture, IgnoringTheOwnersOpenTicketsLosesAStore) {
  Loses({.take_open_tickets = false}, {.stop = true}, kLost);
}
TEST(Trap4ForeignCapture, IgnoringTheOwnersRedoRangesLosesAStore) {
  Loses({.take_redo = false}, {.failures = 1}, kLost);
}
TEST(Trap4ForeignCapture, LookingAtTicketsBeforeTheScanLosesAStore) {
  Loses({.scan_before_tickets = false}, {}, kLost);
}
TEST(Trap4ForeignCapture, WaitingForAStoppedOwnersTicketHangs) {
  Loses({.wait_for_owner = true}, {.stop = true}, "waits for ever");
}
TEST(Trap4ForeignCapture, TakingADeadOwnersPageTableForCleanLosesAStore) {
  Loses({.dead_is_suspect = false}, {.kill = true}, kLost);
}
TEST(Trap4ForeignCapture, KeepsEveryStoreOfAnOwnerThatHasJustUnmapped) {
  Holds({}, {.a_rounds = 1, .failures = 1, .stop = true, .kill = true, .unmap = true});
}
TEST(Trap4ForeignCapture, UnmapWithoutHandingOverLosesAStore) {
  Loses({.hand_over = false}, {.a_rounds = 1, .unmap = true}, kLost);
}
TEST(Trap4ForeignCapture, StoreBetweenTheLastScanAndTheUnmapIsLost) {
  Loses({.protect_before_unmap = false}, {.a_rounds = 1, .unmap = true}, kLost);
}
// The owner finds clean what the daemon has just scanned: trap 2 across the two.
TEST(Trap4ForeignCapture, DaemonCaptureThatTheOwnerCannotSeeLosesAStore) {
  Loses({.flag = false}, {}, kLost);
}
TEST(Trap4ForeignCapture, DaemonFlagRaisedAfterItsScanLosesAStore) {
  Loses({.flag_before_scan = false}, {}, kLost);
}
TEST(Trap4ForeignCapture, DaemonFlagReadBeforeTheOwnersScanLosesAStore) {
  Loses({.read_flag_after_scan = false}, {}, kLost);
}
TEST(Trap4ForeignCapture, DaemonFlagDroppedAfterAFailedCaptureLosesAStore) {
  Loses({.flag_stays_on_failure = false}, {.failures = 1}, kLost);
}

}  // namespace
}  // namespace pmirror::model
