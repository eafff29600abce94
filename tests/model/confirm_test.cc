// SPDX-License-Identifier: BSD-3-Clause
// A block that a killed program may have stored to is compared with the replica's by its checksum, instead of being sent: which place that
// comparison needs in the capture order so that no frame which is still on its way can undo its answer. Trap 7. docs/internals/resync.md
// has the argument; fs/confirmation.cc is what was built of it.
//
// One block of two words; a value stands for its bytes, and stores bring old values back, because that is what fools a comparison. P stores
// to both words, syncs them and is killed at any moment; Q stores to the second one and flushes it, without scan and ticket. Then the
// daemon makes the block equal, by one of several ways.
#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "tests/model/enumerate.h"

namespace pmirror::model {
namespace {

constexpr int kWords = 2;
enum Flight : uint8_t { kNone, kFlying, kAnswered };

struct Frame {
  uint8_t flight = kNone;
  uint8_t words = 0;  // bits
  uint8_t order = 0;
  std::array<uint8_t, kWords> image{};
};

struct Program {
  uint8_t pc = 0;
  uint8_t copied = 0;  // words, of the frame that is being made
  Frame frame;
};

struct State {
  std::array<uint8_t, kWords> primary{};
  std::array<uint8_t, kWords> replica{};
  std::array<uint8_t, kWords> replica_order{};
  uint8_t counter = 0;
  uint8_t killed = 0;
  Program p;
  Program q;
  uint8_t daemon_pc = 0;
  uint8_t equal = 0;     // what the replica answered
  Frame asked;           // the confirmation: its image stands for the checksums
  uint8_t is_bytes = 0;  // `asked` carries the bytes themselves
  uint8_t live = 0;      // R: 1 has stored, and its page is dirty; 2 stores nothing
};

enum class Way {
  kSend,     // the block's bytes, whatever the replica holds
  kCompare,  // as a resync does: the replica's checksum is asked for; equal means done
  kConfirm,  // a frame with number and checksum; where the replica finds it equal, it enters the number
};

struct Rules {
  Way way = Way::kConfirm;
  bool number_first = true;  // before the checksum is made of what the file holds
  bool enter_number = true;  // the replica does, as if the bytes had come
  bool in_one_step = true;   // comparison and entry, against other frames
  bool live =
      false;  // Q's frames carry both words, and a third program, R, may store to one of them and not sync it
};

class Confirm {
 public:
  explicit Confirm(Rules rules) : rules_(rules) {}

  Model<State> Build() {
    AddProgram("P", &State::p, 0b11, {{1, 1}, {1, 0}, {0, 1}}, {{0, 0}, {1, 1}, {1, 0}}, true);
    AddProgram("Q", &State::q, rules_.live ? 0b11 : 0b10, {{1, 0}}, {{1, 2}, {1, 0}}, false);
    AddLive();
    AddDaemon();
    model_.Anytime("kernel", "kills P", [](State& s) {
      if (s.killed != 0) {
        return false;
      }
      s.killed = 1;
      s.p.pc = kFinished;
      return true;
    });
    AddDelivery("P's frame", &State::p);
    AddDelivery("Q's frame", &State::q);
    AddAnswer();
    model_.at_end = [](const State& s) -> std::string {
      if (s.q.pc != kFinished || s.daemon_pc != kFinished) {
        return "somebody waits for ever";
      }
      const int from = s.live == 1 ? 1 : 0;  // R's next sync sends its word, whatever it holds
      return std::equal(s.replica.begin() + from, s.replica.end(), s.primary.begin() + from)
                 ? ""
                 : "the copies differ and nobody knows";
    };
    model_.describe = Describe;
    return model_;
  }

 private:
  using Stores = std::vector<std::pair<int, uint8_t>>;  // word, value

  // Stores, syncs, and stores and syncs again.
  void AddProgram(const std::string& name, Program State::*member, uint8_t words, const Stores& first,
                  const Stores& second, bool mortal) {
    Process<State> p(model_, name, [member](State& s) -> uint8_t& { return (s.*member).pc; });
    for (const Stores& stores : {first, second}) {
      for (const auto& [word, value] : stores) {
        p.Do("stores", [word = word, value = value](State& s) {
          s.primary[word] = value;
          return kNext;
        });
      }
      p.Do("takes the next number", [member](State& s) {
        (s.*member).frame.order = ++s.counter;
        return kNext;
      });
      const Flow again = p.Here();
      p.Do("copies a word", [member, words, again](State& s) {
        Program& me = s.*member;
        for (int w = 0; w < kWords; ++w) {
          if ((words & ~me.copied & 1 << w) != 0) {
            me.copied |= 1 << w;
            me.frame.image[w] = s.primary[w];
            return me.copied == words ? kNext : again;
          }
        }
        return kNext;
      });
      p.Do("sends", [member, words](State& s) {
        (s.*member).frame.words = words;
        (s.*member).frame.flight = kFlying;
        return kNext;
      });
      p.Do("has the acknowledgement", [member](State& s) {
        Program& me = s.*member;
        if (me.frame.flight != kAnswered) {
          return kBlocked;
        }
        me.frame = {};
        me.copied = 0;
        return kNext;
      });
    }
    if (mortal) {  // else the state space has no end in which P lives on, and its last stores are synced
      p.Do("waits to be killed", [](State&) { return kBlocked; });
    } else {
      p.End();
    }
  }

  void AddLive() {
    if (!rules_.live) {
      return;
    }
    for (const uint8_t choice : {1, 2}) {
      model_.Anytime("R", choice == 1 ? "stores to the first word" : "stores nothing", [choice](State& s) {
        if (s.live != 0) {
          return false;
        }
        s.live = choice;
        s.primary[0] = choice == 1 ? 2 : s.primary[0];
        return true;
      });
    }
  }

  void AddDaemon() {
    Process<State> p(model_, "daemon", [](State& s) -> uint8_t& { return s.daemon_pc; });
    p.Do("notices the end of P", [](State& s) { return s.killed != 0 ? kNext : kBlocked; });
    const bool asks = rules_.way == Way::kCompare;
    if (rules_.way != Way::kSend) {
      if (rules_.number_first) {
        AddNumber(p);
      }
      if (asks) {
        p.Do("asks the replica for its checksum", [](State& s) {
          s.asked.image = s.replica;
          return kNext;
        });
        p.Do("compares with its own", [](State& s) {
          s.equal = s.asked.image == s.primary ? 1 : 0;
          return s.equal != 0 ? kDone : kNext;
        });
      } else {
        AddRead(p, "makes the checksum of a word");
        if (!rules_.number_first) {
          AddNumber(p);
        }
        AddSend(p, false);
        p.Do("has the answer", [](State& s) {
          if (s.asked.flight != kAnswered) {
            return kBlocked;
          }
          s.asked = {};
          return s.equal != 0 ? kDone : kNext;
        });
      }
    }
    AddNumber(p);
    AddRead(p, "copies a word");
    AddSend(p, true);
    p.Do("has the acknowledgement", [](State& s) { return s.asked.flight == kAnswered ? kDone : kBlocked; });
  }

  static void AddNumber(Process<State>& p) {
    p.Do("takes the next number", [](State& s) {
      s.asked.order = ++s.counter;
      return kNext;
    });
  }

  static void AddRead(Process<State>& p, const std::string& what) {
    for (int w = 0; w < kWords; ++w) {
      p.Do(what, [w](State& s) {
        s.asked.image[w] = s.primary[w];
        return kNext;
      });
    }
  }

  static void AddSend(Process<State>& p, bool bytes) {
    p.Do(bytes ? "sends the bytes" : "sends the confirmation", [bytes](State& s) {
      s.asked.words = 0b11;
      s.asked.flight = kFlying;
      s.is_bytes = bytes ? 1 : 0;
      return kNext;
    });
  }

  static void Apply(State& s, const Frame& frame) {
    for (int w = 0; w < kWords; ++w) {
      if ((frame.words & 1 << w) != 0 && frame.order > s.replica_order[w]) {
        s.replica[w] = frame.image[w];
        s.replica_order[w] = frame.order;
      }
    }
  }

  void AddDelivery(const std::string& what, Program State::*member) {
    model_.Anytime("replica", "applies " + what + ", or skips it", [member](State& s) {
      Frame& frame = (s.*member).frame;
      if (frame.flight != kFlying) {
        return false;
      }
      Apply(s, frame);
      frame.flight = kAnswered;
      return true;
    });
  }

  // Equal is 1 once it was found so and 2 where the number is still to be entered.
  void AddAnswer() {
    model_.Anytime("replica", "takes what the daemon sent", [this](State& s) {
      if (s.asked.flight != kFlying || s.equal == 2) {
        return false;
      }
      if (s.is_bytes != 0) {
        Apply(s, s.asked);
        s.asked.flight = kAnswered;
        return true;
      }
      const bool same = s.replica == s.asked.image;  // also where something newer was applied
      if (same && !rules_.in_one_step) {
        s.equal = 2;
        return true;
      }
      Answer(s, same);
      return true;
    });
    model_.Anytime("replica", "enters the number", [this](State& s) {
      if (s.equal != 2) {
        return false;
      }
      Answer(s, true);
      return true;
    });
  }

  void Answer(State& s, bool same) const {
    s.equal = same ? 1 : 0;
    for (int w = 0; w < kWords && same && rules_.enter_number; ++w) {
      s.replica_order[w] = std::max(s.replica_order[w], s.asked.order);
    }
    s.asked.flight = kAnswered;
  }

  static std::string Describe(const State& s) {
    std::string out = "stored";
    for (int w = 0; w < kWords; ++w) {
      out += " " + std::to_string(s.primary[w]);
    }
    out += " replica";
    for (int w = 0; w < kWords; ++w) {
      out += " " + std::to_string(s.replica[w]) + "#" + std::to_string(s.replica_order[w]);
    }
    return out;
  }

  Rules rules_;
  Model<State> model_;
};

void Holds(Rules rules) { ExpectHolds(Confirm(rules).Build()); }
void Loses(Rules rules) { ExpectLoses(Confirm(rules).Build(), "the copies differ and nobody knows"); }

TEST(Trap7Confirm, BytesThatAreSentMakeTheBlockEqual) { Holds({.way = Way::kSend}); }
TEST(Trap7Confirm, AConfirmationWithANumberMakesTheBlockEqual) { Holds({}); }
TEST(Trap7Confirm, AComparisonBesideTheOrderIsUndoneByAFrameOnItsWay) { Loses({.way = Way::kCompare}); }
TEST(Trap7Confirm, AConfirmationWhoseNumberIsNotEnteredIsUndoneByAFrameOnItsWay) {
  Loses({.enter_number = false});
}
TEST(Trap7Confirm, ANumberTakenAfterTheChecksumUndoesWhatWasStoredBetween) { Loses({.number_first = false}); }
TEST(Trap7Confirm, ANumberEnteredAfterTheComparisonIsUndoneInBetween) { Loses({.in_one_step = false}); }

TEST(Trap7Confirm, BesideAProgramWhoseStoresOthersCarryItMakesTheBlockEqual) { Holds({.live = true}); }
TEST(Trap7Confirm, AndANumberTakenTooLateStillDoesNot) { Loses({.number_first = false, .live = true}); }

}  // namespace
}  // namespace pmirror::model
