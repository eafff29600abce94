// SPDX-License-Identifier: BSD-3-Clause
// What a barrier must make durable on the replica, when a power cut there forgets what was not flushed (trap
// 18): a session's barrier covers more than that session sent. docs/internals/capture-order.md has the
// argument.
//
// One word whose bits are the stores of a program since it was last punched. A and B sync it through sessions
// of their own; the daemon punches it and sends that on its session, as an operation with a number. The
// replica keeps a high-water mark of applied operations; after a power cut the daemon replays what lies above
// the durable mark, and every capture starts again.
#include <array>
#include <string>

#include "tests/model/enumerate.h"

namespace pmirror::model {
namespace {

constexpr uint8_t kOps = 1;
enum Flight : uint8_t { kNone, kFlying, kReceived, kDurable };
// Where a barrier is on the replica.
enum Barrier : uint8_t { kIdle, kMarkRead, kFirstDone };

struct Sender {
  uint8_t pc = 0;
  uint8_t rounds = 0;
  uint8_t must = 0;
  uint8_t generation = 0;
  uint8_t order = 0;
  uint8_t image = 0;
  uint8_t flight = kNone;
  uint8_t applied = 0;  // the replica took it, it was not older than what was there
  uint8_t barrier = kIdle;
  uint8_t mark = 0;  // the high-water mark that this barrier will make durable
};

struct Copy {
  uint8_t word = 0;
  uint8_t ops = 0;  // high-water mark: operations applied
};

struct State {
  uint8_t primary = 0;
  uint8_t stores = 0;
  uint8_t counter = 0;
  uint8_t generation = 0;
  uint8_t ops_done = 0;
  uint8_t ops_sent = 0;
  std::array<Sender, 2> senders{};
  Copy cache;    // what the replica's programs see
  Copy durable;  // what a power cut leaves
  uint8_t replica_order = 0;
  uint8_t power_cuts = 0;    // that may still happen
  uint8_t acknowledged = 0;  // stores since the last punch of syncs that returned
};

struct Rules {
  bool flush_skipped = true;       // a barrier flushes the file also where its own frame was older
  bool flush_mark = true;          // a barrier makes the operations' high-water mark durable too
  bool flush_files_of_ops = true;  // and before that the files which those operations changed
  bool file_before_mark = true;
  bool read_mark_first = true;  // the mark is the one from before the flush of the file
};

struct Setup {
  bool punch = false;
  bool b_elsewhere = false;  // B syncs another file
  std::array<uint8_t, 2> rounds = {1, 1};
};

class Durability {
 public:
  Durability(Rules rules, Setup setup) : rules_(rules), setup_(setup) {}

  Model<State> Build() {
    model_.initial.power_cuts = 1;
    for (int i = 0; i < 2; ++i) {
      model_.initial.senders[i].rounds = setup_.rounds[i];
      model_.initial.senders[i].pc = setup_.rounds[i] == 0 ? kFinished : 0;
      AddSender(i);
      AddDelivery(i);
      AddBarrier(i);
    }
    AddProgram();
    AddReplica();
    model_.always = [](const State& s) -> std::string {
      // Before the punch has arrived it may show what it showed then.
      if (s.durable.ops == s.generation / 2 && (s.acknowledged & ~s.durable.word) != 0) {
        return "an acknowledged store would not survive a power cut";
      }
      if (s.cache.ops == kOps && (s.acknowledged & ~s.cache.word) != 0) {
        return "an acknowledged store is gone";
      }
      return "";
    };
    model_.at_end = [](const State& s) -> std::string {
      if (s.senders[0].pc != kFinished || s.senders[1].pc != kFinished) {
        return "a sync waits for ever";
      }
      return (s.cache.word & ~s.primary) != 0 ? "the replica shows what was punched" : "";
    };
    model_.describe = Describe;
    return model_;
  }

 private:
  void AddProgram() {
    model_.Anytime("program", "stores", [](State& s) {
      if (s.stores == 2) {
        return false;
      }
      s.primary |= 1 << s.stores++;
      return true;
    });
    if (!setup_.punch) {
      return;
    }
    // The two half-steps of the generation have a model of their own; here a punch is one step.
    model_.Anytime("daemon", "punches the word", [](State& s) {
      if (s.ops_done == kOps) {
        return false;
      }
      ++s.ops_done;
      s.generation += 2;
      s.primary = s.acknowledged = 0;
      for (Sender& sender : s.senders) {
        sender.must = 0;
      }
      return true;
    });
    model_.Anytime("daemon", "sends the punch", [](State& s) {
      if (s.ops_sent == s.ops_done) {
        return false;
      }
      s.ops_sent = s.ops_done;
      return true;
    });
  }

  void AddSender(int i) {
    Process<State> p(model_, i == 0 ? "A" : "B", [i](State& s) -> uint8_t& { return s.senders[i].pc; });
    const bool elsewhere = i == 1 && setup_.b_elsewhere;
    p.Do(elsewhere ? "calls msync of another file" : "calls msync", [i, elsewhere](State& s) {
      s.senders[i].must = elsewhere ? 0 : s.primary;
      return kNext;
    });
    const Flow again = p.Here();
    p.Do("takes the next number", [i](State& s) {
      s.senders[i].order = ++s.counter;
      s.senders[i].generation = s.generation;
      return kNext;
    });
    p.Do("copies and sends, with a barrier", [i, again](State& s) {
      Sender& me = s.senders[i];
      if (me.generation != s.generation) {
        return again;
      }
      me.image = s.primary;
      me.flight = kFlying;
      return kNext;
    });
    p.Do("has the durable acknowledgement, and returns", [i](State& s) {
      Sender& me = s.senders[i];
      if (me.flight != kDurable) {
        return kBlocked;
      }
      s.acknowledged |= me.must;
      const uint8_t rounds = me.rounds - 1;
      const uint8_t pc = me.pc;
      me = {.pc = pc, .rounds = rounds};
      return rounds == 0 ? kDone : 0;
    });
    p.Or("captures again: refused, or the session was cut", [i, again](State& s) {
      Sender& me = s.senders[i];
      if (me.flight != kNone) {
        return kBlocked;
      }
      me.image = 0;
      return again;
    });
  }

  void AddDelivery(int i) {
    const std::string name(1, static_cast<char>('A' + i));
    model_.Anytime("replica", "applies " + name + "'s frame, or skips what is older", [this, i](State& s) {
      Sender& sender = s.senders[i];
      if (sender.flight != kFlying || sender.generation / 2 != s.cache.ops) {
        return false;
      }
      const bool here = i == 0 || !setup_.b_elsewhere;
      sender.applied = here && sender.order > s.replica_order ? 1 : 0;
      if (sender.applied != 0) {
        s.cache.word = sender.image;
        s.replica_order = sender.order;
      }
      sender.flight = kReceived;
      return true;
    });
    model_.Anytime("replica", "refuses " + name + "'s frame: older generation", [i](State& s) {
      Sender& sender = s.senders[i];
      const bool older = sender.flight == kFlying && sender.generation / 2 < s.cache.ops;
      sender.flight = older ? uint8_t{kNone} : sender.flight;
      return older;
    });
  }

  void FlushFile(State& s, int i) const {
    const Sender& sender = s.senders[i];
    const bool own = i == 0 || !setup_.b_elsewhere;
    const bool changed_by_op = sender.mark > s.durable.ops && rules_.flush_files_of_ops;
    if (sender.applied != 0 || (own && rules_.flush_skipped) || changed_by_op) {
      s.durable.word = s.cache.word;
    }
  }
  void FlushMark(State& s, const Sender& sender) const {
    if (rules_.flush_mark) {
      const uint8_t mark = rules_.read_mark_first ? sender.mark : s.cache.ops;
      s.durable.ops = std::max(s.durable.ops, mark);
    }
  }

  void AddBarrier(int i) {
    const std::string of = std::string(" for ") + static_cast<char>('A' + i) + "'s barrier";
    const auto step = [this, i](const std::string& what, uint8_t from, uint8_t to,
                                std::function<void(State&, Sender&)> run) {
      model_.Anytime("replica", what, [i, from, to, run = std::move(run)](State& s) {
        Sender& sender = s.senders[i];
        if (sender.flight != kReceived || sender.barrier != from) {
          return false;
        }
        run(s, sender);
        sender.barrier = to;
        sender.flight = to == kIdle ? uint8_t{kDurable} : sender.flight;
        return true;
      });
    };
    const auto file = [this, i](State& s, Sender&) { FlushFile(s, i); };
    const auto mark = [this](State& s, Sender& sender) { FlushMark(s, sender); };
    step("notes the operations' high-water mark" + of, kIdle, kMarkRead,
         [](State& s, Sender& sender) { sender.mark = s.cache.ops; });
    step((rules_.file_before_mark ? "flushes the file" : "flushes the mark") + of, kMarkRead, kFirstDone,
         rules_.file_before_mark ? std::function<void(State&, Sender&)>(file) : mark);
    step((rules_.file_before_mark ? "flushes the mark" : "flushes the file") + of + ", and acknowledges",
         kFirstDone, kIdle, rules_.file_before_mark ? std::function<void(State&, Sender&)>(mark) : file);
  }

  void AddReplica() {
    model_.Anytime("replica", "applies the punch", [](State& s) {
      if (s.cache.ops == s.ops_sent) {
        return false;
      }
      s.cache.word = 0;
      ++s.cache.ops;
      s.replica_order = 0;
      return true;
    });
    model_.Anytime("replica", "writes the file back, unasked", [](State& s) {
      const bool changes = s.durable.word != s.cache.word;
      s.durable.word = s.cache.word;
      return changes;
    });
    model_.Anytime("replica", "loses power, and starts again", [](State& s) {
      if (s.power_cuts == 0) {
        return false;
      }
      --s.power_cuts;
      s.cache = s.durable;
      s.replica_order = 0;
      for (Sender& sender : s.senders) {
        sender.flight = sender.applied = 0;
        sender.barrier = kIdle;
        sender.mark = 0;
      }
      return true;
    });
  }

  static std::string Describe(const State& s) {
    return "stored " + std::to_string(s.primary) + " gen " + std::to_string(s.generation) + " acknowledged " +
           std::to_string(s.acknowledged) + " replica " + std::to_string(s.cache.word) + " ops " +
           std::to_string(s.cache.ops) + " durable " + std::to_string(s.durable.word) + " ops " +
           std::to_string(s.durable.ops);
  }

  Rules rules_;
  Setup setup_;
  Model<State> model_;
};

void Holds(Rules rules, Setup setup) { ExpectHolds(Durability(rules, setup).Build()); }
void Loses(Rules rules, Setup setup, const char* what) {
  ExpectLoses(Durability(rules, setup).Build(), what);
}

TEST(Trap18Durability, BarrierKeepsEveryAcknowledgedStoreThroughAPowerCut) { Holds({}, {.rounds = {2, 1}}); }
TEST(Trap18Durability, BarrierKeepsEveryAcknowledgedStoreBesideAReplayedPunch) {
  Holds({}, {.punch = true, .rounds = {2, 0}});
  Holds({}, {.punch = true});
  Holds({}, {.punch = true, .b_elsewhere = true});
}
TEST(Trap18Durability, BarrierThatFlushesOnlyWhatItsOwnSessionWroteLosesAStore) {
  Loses({.flush_skipped = false}, {}, "would not survive");
}
TEST(Trap18Durability, BarrierWithoutTheOperationsMarkLosesAStoreToTheReplayedPunch) {
  Loses({.flush_mark = false}, {.punch = true}, "is gone");
}
TEST(Trap18Durability, MarkFlushedWithoutTheFilesOfItsOperationsForgetsAPunch) {
  Loses({.flush_files_of_ops = false}, {.punch = true, .b_elsewhere = true}, "shows what was punched");
}
TEST(Trap18Durability, MarkFlushedBeforeTheFilesOfItsOperationsForgetsAPunch) {
  Loses({.file_before_mark = false}, {.punch = true, .b_elsewhere = true}, "shows what was punched");
}
TEST(Trap18Durability, MarkReadAfterTheFlushForgetsAPunch) {
  Loses({.read_mark_first = false}, {.punch = true}, "shows what was punched");
}

}  // namespace
}  // namespace pmirror::model
