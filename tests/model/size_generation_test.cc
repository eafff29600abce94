// SPDX-License-Identifier: BSD-3-Clause
// Size operations (truncate, punch) of the daemon against captures on other sessions, whose frames may arrive
// before or after them. The rules are those of docs/internals/architecture.md, "Order numbers and size
// generations"; the argument and what each other rule loses is in docs/internals/capture-order.md. Trap 8,
// and trap 1 with changes that are not images.
// Long because: the rule and each of the tempting wrong ones are one model with switches, read side by side.
//
// The file has two words, each in a page of its own or both in one page. A word holds what was stored last,
// zero, or "absent" (it lies beyond the end of the file): so the size is part of the contents.
#include <array>
#include <string>
#include <vector>

#include "tests/model/enumerate.h"

namespace pmirror::model {
namespace {

constexpr int kWords = 2;
constexpr int kMaxSenders = 2;
constexpr int kMaxOps = 2;
constexpr uint8_t kWritten = 7;  // by the daemon's WRITE; 1 and 2 were there before, stores count from 3
constexpr uint8_t kAbsent = 15;

enum Flight : uint8_t { kNone, kFlying, kAcknowledged, kRecapture };
enum class Op : uint8_t { kShrink, kExtend, kPunch, kInsert, kCollapse };

using File = std::array<uint8_t, kWords>;

constexpr const char* Name(Op op) {
  switch (op) {
    case Op::kShrink:
      return "shrinks the file to one word";
    case Op::kExtend:
      return "extends the file to two words";
    case Op::kPunch:
      return "punches word 0";
    case Op::kInsert:
      return "inserts a word at 0";
    case Op::kCollapse:
      return "collapses word 0";
  }
  return "";
}

// The same change here and there; idempotent but for the two that shift.
void Change(File& file, Op op) {
  switch (op) {
    case Op::kShrink:
      file[1] = kAbsent;
      break;
    case Op::kExtend:
      file[1] = file[1] == kAbsent ? 0 : file[1];
      break;
    case Op::kPunch:
      file[0] = file[0] == kAbsent ? kAbsent : 0;
      break;
    case Op::kInsert:
      file[1] = file[0], file[0] = 0;
      break;
    case Op::kCollapse:
      file[0] = file[1], file[1] = kAbsent;
      break;
  }
}

struct Sender {
  uint8_t pc = 0;
  uint8_t rounds = 0;
  uint8_t words = 0;  // to be captured
  uint8_t copied = 0;
  uint8_t generation = 0;
  uint8_t order = 0;
  File image{};
  uint8_t flight = kNone;
  uint8_t reserved = 0;
  std::array<uint16_t, kWords> legal{};  // values each word has had since this sync began, as bits
};

struct State {
  std::array<Sender, kMaxSenders> senders{};
  std::array<uint16_t, kWords>
      before{};              // values from before an operation that the replica does not have yet
  uint16_t overwritten = 0;  // the same for the daemon's WRITE of word 1
  File primary{};
  File replica{};
  std::array<uint8_t, kWords> replica_order{};
  uint8_t replica_generation = 0;
  uint8_t dirty = 0;  // words
  uint8_t counter = 0;
  uint8_t generation = 0;
  uint8_t stores = 0;
  uint8_t daemon_pc = 0;
  uint8_t ops_changed = 0;
  uint8_t ops_sent = 0;
  uint8_t ops_applied = 0;
  uint8_t timeouts = 0;                     // of the replica's bounded wait that may still happen
  std::array<uint8_t, kMaxOps> op_order{};  // plain newest-wins rules only
  uint8_t lost = 0;
  uint8_t beyond = 0;  // stored to the last page beyond the end of the file
};

// How a capture that races with a size operation is told from one that does not.
enum class Rule {
  kGenerations,       // the real one
  kBumpBefore,        // one generation step, before the local change
  kBumpAfter,         // one generation step, after it
  kNumberThenChange,  // the operation takes an order number as a capture does; newest wins
  kChangeThenNumber,
};

struct Rules {
  Rule rule = Rule::kGenerations;
  bool check_after_number = false;  // the generation is read before the number, and again
  bool check_after_copy = true;     // there
  bool refuse_older = true;
  bool wait_for_newer = true;
  bool empty_map = true;
  bool redo_tail = true;  // the page that held the old end of the file is captured again after an extension
  bool barrier_waits = true;  // a sync's barrier carries the generation, also when there is nothing to send
};

struct Setup {
  std::vector<Op> ops;
  int words_a_page = 1;
  uint8_t stores = 1;
  std::vector<uint8_t> rounds = {1, 1};  // of A, which scans, and of B, which sends the whole range each time
  bool writer = false;       // B is instead the daemon's WRITE of word 1, which may extend the file
  bool tail_stores = false;  // the program also stores beyond the end, and the file system keeps that
  bool only_at_end = false;  // look only whether the copies are equal in the end
  bool told = true;  // a size operation counts from when its caller was told, else from its local change
};

class SizeGeneration {
 public:
  SizeGeneration(Rules rules, Setup setup) : rules_(rules), setup_(std::move(setup)) {}

  Model<State> Build() {
    model_.initial.primary = model_.initial.replica = {1, 2};
    model_.initial.timeouts = 1;
    for (size_t i = 0; i < setup_.rounds.size(); ++i) {
      model_.initial.senders[i].rounds = setup_.rounds[i];
      AddSender(i);
      AddDelivery(i);
    }
    AddStorer();
    for (uint8_t k = 0; k < setup_.ops.size(); ++k) {
      AddSizeOp(k);
    }
    model_.always = [this](const State& s) {
      return std::string(s.lost != 0 && !setup_.only_at_end
                             ? "a sync returned success and the replica holds something older"
                             : "");
    };
    model_.at_end = [this](const State& s) { return AtEnd(s); };
    model_.describe = Describe;
    return model_;
  }

 private:
  bool Plain() const {
    return rules_.rule == Rule::kNumberThenChange || rules_.rule == Rule::kChangeThenNumber;
  }
  uint8_t WordsOfPage(int word) const {
    return setup_.words_a_page == kWords ? 0b11 : static_cast<uint8_t>(1 << word);
  }

  static void Modify(State& s, int word, uint8_t value) {
    s.primary[word] = value;
    for (Sender& sender : s.senders) {
      sender.legal[word] |= static_cast<uint16_t>(1 << value);
    }
  }

  void AddStorer() {
    for (int word = 0; word < kWords; ++word) {
      model_.Anytime("program", "stores to word " + std::to_string(word), [this, word](State& s) {
        const bool beyond = s.primary[word] == kAbsent;
        if (s.stores == setup_.stores || (beyond && !setup_.tail_stores)) {
          return false;
        }
        if (beyond) {
          s.beyond = 3 + s.stores++;
        } else {
          Modify(s, word, 3 + s.stores++);
        }
        s.dirty |= WordsOfPage(word);
        return true;
      });
    }
  }

  bool IsWriter(size_t i) const { return setup_.writer && i == 1; }

  void AddSender(size_t i) {
    const std::string name = IsWriter(i) ? "write" : std::string(1, static_cast<char>('A' + i));
    Process<State> p(model_, name, [i](State& s) -> uint8_t& { return s.senders[i].pc; });
    if (IsWriter(i)) {
      p.Do("writes word 1 of the backing file", [i](State& s) {
        s.overwritten = static_cast<uint16_t>(1 << s.primary[1] | (s.primary[1] == kAbsent ? 1 : 0));
        if (s.primary[1] == kAbsent) {
          Modify(s, 1, 0);  // the size may grow before the bytes are there
        }
        Modify(s, 1, kWritten);
        s.senders[i].words = 0b10;
        return Begin(s, i);
      });
    } else {
      p.Do("calls msync", [i](State& s) { return Begin(s, i); });
      p.Do(i == 0 ? "scans and protects" : "takes the whole range", [i](State& s) {
        s.senders[i].words = i == 0 ? s.dirty : 0b11;
        s.dirty = i == 0 ? 0 : s.dirty;
        return kNext;
      });
    }
    AddCapture(p, i);
  }

  // What the replica may hold when this sync returns: what the file holds now or later, and, of a size
  // operation that nobody has been told of yet, what it held before.
  static Flow Begin(State& s, size_t i) {
    for (int w = 0; w < kWords; ++w) {
      s.senders[i].legal[w] = static_cast<uint16_t>(1 << s.primary[w] | s.before[w]);
    }
    if (i == 0 && s.primary[1] == kWritten) {
      s.senders[i].legal[1] |= s.overwritten;  // a write under way is the matter of foreign_capture_test.cc
    }
    return kNext;
  }

  void AddCapture(Process<State>& p, size_t i) {
    const Flow again = p.Here();
    p.Do("reads the size generation", [this, i](State& s) {
      if (s.generation % 2 != 0 && rules_.rule == Rule::kGenerations) {
        return kBlocked;
      }
      s.senders[i].copied = 0;
      s.senders[i].image = {};
      s.senders[i].generation = s.generation;
      return kNext;
    });
    p.Do("takes the next number", [i](State& s) {
      s.senders[i].order = s.senders[i].words != 0 ? ++s.counter : 0;
      return kNext;
    });
    if (rules_.check_after_number) {
      p.Do("checks the generation",
           [i, again](State& s) { return s.generation == s.senders[i].generation ? kNext : again; });
    }
    for (int w = 0; w < kWords; ++w) {
      if (IsWriter(i) && w == 0) {
        continue;
      }
      p.Do("copies word " + std::to_string(w), [i, w](State& s) {
        Sender& me = s.senders[i];
        if ((me.words & 1 << w) != 0 && s.primary[w] != kAbsent) {
          me.copied |= 1 << w;
          me.image[w] = s.primary[w];
        }
        return kNext;
      });
    }
    if (rules_.check_after_copy) {
      p.Do("checks the generation again",
           [i, again](State& s) { return s.generation == s.senders[i].generation ? kNext : again; });
    }
    p.Do("sends what lies inside the file", [this, i](State& s) {
      Sender& me = s.senders[i];
      me.flight = me.copied != 0 || rules_.barrier_waits ? kFlying : kAcknowledged;
      return kNext;
    });
    p.Do("has the acknowledgement",
         [i](State& s) { return s.senders[i].flight == kAcknowledged ? kNext : kBlocked; });
    p.Or("is told to capture again", [i, again](State& s) {
      if (s.senders[i].flight != kRecapture) {
        return kBlocked;
      }
      s.senders[i].flight = kNone;
      return again;
    });
    p.Do("returns", [this, i](State& s) {
      Sender& me = s.senders[i];
      for (int w = IsWriter(i) ? 1 : 0; w < kWords; ++w) {
        s.lost |= (me.legal[w] & 1 << s.replica[w]) == 0 ? 1 : 0;
      }
      s.overwritten = IsWriter(i) ? 0 : s.overwritten;
      const uint8_t rounds = me.rounds;
      const uint8_t pc = me.pc;
      me = {.pc = pc, .rounds = static_cast<uint8_t>(rounds - 1)};
      return me.rounds == 0 ? kDone : 0;
    });
  }

  // One operation of the daemon; the next starts without waiting for the replica. All are sent on one
  // session.
  void AddSizeOp(uint8_t k) {
    const Op op = setup_.ops[k];
    const auto step = [this, k](uint8_t place, const std::string& what, std::function<void(State&)> run) {
      const auto at = static_cast<uint8_t>(k * 5 + place);
      model_.Anytime("daemon", what, [at, run = std::move(run)](State& s) {
        if (s.daemon_pc != at) {
          return false;
        }
        run(s);
        ++s.daemon_pc;
        return true;
      });
    };
    const auto nothing = [](State&) {};
    const auto bump = [](State& s) { ++s.generation; };
    const auto bump_twice = [](State& s) { s.generation += 2; };
    const auto number = [k](State& s) { s.op_order[k] = ++s.counter; };
    switch (rules_.rule) {
      case Rule::kGenerations:
        step(0, "makes the generation odd", bump);
        break;
      case Rule::kBumpBefore:
        step(0, "bumps the generation", bump_twice);
        break;
      case Rule::kNumberThenChange:
        step(0, "takes the next number", number);
        break;
      default:
        step(0, "", nothing);
    }
    step(1, Name(op), [this, op](State& s) { ChangeHere(s, op); });
    switch (rules_.rule) {
      case Rule::kGenerations:
        step(2, "makes the generation even", bump);
        break;
      case Rule::kBumpAfter:
        step(2, "bumps the generation", bump_twice);
        break;
      case Rule::kChangeThenNumber:
        step(2, "takes the next number", number);
        break;
      default:
        step(2, "", nothing);
    }
    step(3, "sends the operation", [](State& s) { ++s.ops_sent; });
    step(4, "", nothing);
    model_.Anytime("replica", std::string("applies: ") + Name(op), [this, op, k](State& s) {
      if (s.ops_sent <= k || s.ops_applied != k) {
        return false;
      }
      ChangeThere(s, op, k);
      return true;
    });
  }

  void ChangeHere(State& s, Op op) const {
    ++s.ops_changed;
    const File old = s.primary;
    File now = old;
    Change(now, op);
    if (op == Op::kExtend && old[1] == kAbsent) {
      Modify(s, 1, 0);
      now[1] = s.beyond;
      s.dirty |= setup_.tail_stores && rules_.redo_tail ? 0b11 : 0;
    }
    s.beyond = 0;
    for (int w = 0; w < kWords; ++w) {
      s.before[w] |= setup_.told ? static_cast<uint16_t>(1 << old[w]) : 0;
      if (now[w] == old[w]) {
        continue;
      }
      Modify(s, w, now[w]);
      // The kernel drops a page that goes, and its dirty bit with it; of one that goes in part it keeps both.
      // After a shift the daemon is taken to have marked everything.
      if (op == Op::kInsert || op == Op::kCollapse) {
        s.dirty |= 0b11;
      } else if (setup_.words_a_page == 1) {
        s.dirty &= ~(1 << w);
      }
    }
  }

  void ChangeThere(State& s, Op op, uint8_t k) const {
    File now = s.replica;
    Change(now, op);
    for (int w = 0; w < kWords; ++w) {
      const bool touched = op == Op::kPunch ? w == 0 : w == 1;
      if (!Plain()) {
        s.replica[w] = now[w];
        s.replica_order[w] = rules_.empty_map ? 0 : s.replica_order[w];
      } else if (touched && s.op_order[k] > s.replica_order[w]) {
        s.replica[w] = now[w];
        s.replica_order[w] = s.op_order[k];
      }
    }
    s.replica_generation += 2;
    if (++s.ops_applied == s.ops_changed) {
      s.before = {};
    }
  }

  void AddDelivery(size_t i) {
    const std::string name =
        IsWriter(i) ? "the write's frame" : std::string(1, static_cast<char>('A' + i)) + "'s frame";
    model_.Anytime("replica", "applies " + name + ", or skips what is older", [this, i](State& s) {
      Sender& me = s.senders[i];
      if (me.flight != kFlying || (!Plain() && !Applicable(s, me))) {
        return false;
      }
      for (int w = 0; w < kWords; ++w) {
        if ((me.copied & 1 << w) != 0 && me.order > s.replica_order[w]) {
          s.replica[w] = me.image[w];
          s.replica_order[w] = me.order;
        }
      }
      me.flight = kAcknowledged;
      return true;
    });
    model_.Anytime("replica", "refuses " + name + ": capture again", [this, i](State& s) {
      Sender& me = s.senders[i];
      if (me.flight != kFlying || Plain()) {
        return false;
      }
      const bool older = me.generation < s.replica_generation && rules_.refuse_older;
      const bool newer = me.generation > s.replica_generation && rules_.wait_for_newer && s.timeouts != 0;
      s.timeouts -= newer ? 1 : 0;
      me.flight = kRecapture;
      return older || newer;
    });
  }

  bool Applicable(const State& s, const Sender& frame) const {
    return frame.generation == s.replica_generation ||
           (frame.generation < s.replica_generation && !rules_.refuse_older) ||
           (frame.generation > s.replica_generation && !rules_.wait_for_newer);
  }

  std::string AtEnd(const State& s) const {
    for (size_t i = 0; i < setup_.rounds.size(); ++i) {
      if (s.senders[i].pc != kFinished) {
        return "a sync waits for ever";
      }
    }
    for (int w = 0; w < kWords; ++w) {
      if (s.replica[w] != s.primary[w] && (s.dirty & 1 << w) == 0) {
        return "the copies differ and nobody knows";
      }
    }
    return "";
  }

  static std::string Show(const File& file) {
    std::string out;
    for (const uint8_t word : file) {
      out += word == kAbsent ? " ." : " " + std::to_string(word);
    }
    return out;
  }
  static std::string Describe(const State& s) {
    return "file" + Show(s.primary) + " dirty " + std::to_string(s.dirty) + " gen " +
           std::to_string(s.generation) + " replica" + Show(s.replica) + " gen " +
           std::to_string(s.replica_generation);
  }

  Rules rules_;
  Setup setup_;
  Model<State> model_;
};

void Holds(Rules rules, Setup setup) { ExpectHolds(SizeGeneration(rules, std::move(setup)).Build()); }
void Loses(Rules rules, Setup setup, const char* what) {
  ExpectLoses(SizeGeneration(rules, std::move(setup)).Build(), what);
}

constexpr char kOlder[] = "holds something older";
constexpr char kUnknown[] = "nobody knows";

const std::vector<std::vector<Op>> kHistories = {{Op::kShrink},
                                                 {Op::kPunch},
                                                 {Op::kShrink, Op::kExtend},
                                                 {Op::kExtend, Op::kShrink},
                                                 {Op::kPunch, Op::kShrink}};

TEST(Trap8SizeGeneration, EveryHistoryOfTruncateAndPunchKeepsTheCopiesEqual) {
  Holds({}, {.ops = {Op::kShrink}, .rounds = {2, 1}});
  Holds({}, {.ops = {Op::kPunch}, .rounds = {2, 1}});
  Holds({}, {.ops = {Op::kShrink, Op::kExtend}});
  for (const auto& ops : kHistories) {
    Holds({}, {.ops = ops, .stores = 2, .rounds = {2}});
  }
}
TEST(Trap8SizeGeneration, WithinOnePageTheCopiesStayEqual) {
  for (const auto& ops : kHistories) {
    Holds({}, {.ops = ops, .words_a_page = 2, .stores = 2, .rounds = {2}});
  }
}
TEST(Trap8SizeGeneration, BesideAWriteThatExtendsTheFileTheCopiesStayEqual) {
  for (const auto& ops : kHistories) {
    Holds({}, {.ops = ops, .stores = static_cast<uint8_t>(ops.size() == 1 ? 1 : 0), .writer = true});
  }
}
TEST(Trap8SizeGeneration, KeepingTheOrderMapAcrossASizeOperationIsSafeToo) {
  Holds({.empty_map = false}, {.ops = {Op::kShrink, Op::kExtend}, .stores = 2, .rounds = {2}});
}

// A copy that runs into a truncate is clipped, and so carries neither the store nor the truncate.
TEST(Trap8SizeGeneration, GenerationCheckedOnlyAroundTheNumberLosesAStore) {
  Loses({.check_after_number = true, .check_after_copy = false}, {.ops = {Op::kShrink}}, kOlder);
}
TEST(Trap8SizeGeneration, NumberThenChangeWithNewestWinsDiverges) {
  Loses({.rule = Rule::kNumberThenChange}, {.ops = {Op::kShrink}, .only_at_end = true}, kUnknown);
}
TEST(Trap8SizeGeneration, ChangeThenNumberWithNewestWinsLosesAStore) {
  Loses({.rule = Rule::kChangeThenNumber}, {.ops = {Op::kPunch}, .only_at_end = true}, kUnknown);
}
TEST(Trap8SizeGeneration, OneBumpBeforeTheChangeDiverges) {
  Loses({.rule = Rule::kBumpBefore}, {.ops = {Op::kShrink}, .only_at_end = true}, kUnknown);
}
TEST(Trap8SizeGeneration, OneBumpAfterTheChangeLosesAStore) {
  Loses({.rule = Rule::kBumpAfter}, {.ops = {Op::kPunch}}, kOlder);
}
TEST(Trap8SizeGeneration, ApplyingAFrameOfAnOlderGenerationDiverges) {
  Loses({.refuse_older = false}, {.ops = {Op::kShrink}, .only_at_end = true}, kUnknown);
}
TEST(Trap8SizeGeneration, ApplyingAFrameOfANewerGenerationAtOnceLosesAStore) {
  Loses({.wait_for_newer = false}, {.ops = {Op::kPunch}, .only_at_end = true}, kUnknown);
}

// Operations that shift what follows (insert, collapse) are not idempotent over an image that already has
// them.
TEST(Trap8SizeGeneration, ShiftUnderACopyLosesAStoreUnlessTheGenerationIsCheckedAfterTheCopy) {
  for (const Op op : {Op::kInsert, Op::kCollapse}) {
    Loses({.check_after_copy = false}, {.ops = {op}}, "");
    Holds({}, {.ops = {op}, .stores = 0});  // a store that nobody synced may move with the rest, or not
  }
}

// Measured on tmpfs: what a mapping stored to the last page beyond the end of the file becomes contents when
// the file grows. (ext4 shows zeros.) A capture was clipped there.
TEST(Trap8SizeGeneration, TailThatGrowsIntoTheFileIsCapturedAgain) {
  Holds({}, {.ops = {Op::kShrink, Op::kExtend},
             .words_a_page = 2,
             .stores = 2,
             .rounds = {2},
             .tail_stores = true});
}
TEST(Trap8SizeGeneration, TailThatGrowsIntoTheFileUnnoticedDiverges) {
  Loses({.redo_tail = false},
        {.ops = {Op::kShrink, Op::kExtend},
         .words_a_page = 2,
         .rounds = {2},
         .tail_stores = true,
         .only_at_end = true},
        kUnknown);
}

// A sync that begins after somebody else's truncate took effect, before that one was told so.
TEST(Trap8SizeGeneration, BarrierThatCarriesTheGenerationCoversATruncateUnderWay) {
  Holds({}, {.ops = {Op::kShrink}, .told = false});
}
TEST(Trap8SizeGeneration, SyncWithNothingToSendMissesATruncateUnderWay) {
  Loses({.barrier_waits = false}, {.ops = {Op::kShrink}, .told = false}, kOlder);
}

}  // namespace
}  // namespace pmirror::model
