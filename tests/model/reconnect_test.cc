// SPDX-License-Identifier: BSD-3-Clause
// Sessions that are cut, and a replica that restarts and forgets its order map: what is not acknowledged is
// captured again under a new number, never sent again as it was. Trap 11. docs/internals/capture-order.md has
// the argument.
//
// One page whose bits are the stores. A and B sync it through sessions of their own; each sync captures the
// page. What a session carried may be lost with it, or its acknowledgement, or it may be applied late.
#include <array>
#include <string>

#include "tests/model/enumerate.h"

namespace pmirror::model {
namespace {

constexpr int kSenders = 2;
enum Flight : uint8_t { kNone, kFlying, kApplied };

struct Sender {
  uint8_t pc = 0;
  uint8_t rounds = 0;
  uint8_t must = 0;
  uint8_t order = 0;
  uint8_t image = 0;
  uint8_t link = 1;      // incarnation of its connection; 0 while it is cut
  uint8_t captured = 0;  // the incarnation at which the number was taken
  uint8_t cuts = 0;      // incarnations so far
  uint8_t flight = kNone;
};

struct State {
  uint8_t primary = 0;
  uint8_t stores = 0;
  uint8_t counter = 0;
  std::array<Sender, kSenders> senders{};
  uint8_t late_image = 0;  // received on a connection that is gone, not yet applied
  uint8_t late_order = 0;
  uint8_t replica = 0;
  uint8_t replica_order = 0;
  uint8_t cuts = 0;  // that may still happen
  uint8_t restarts = 0;
  uint8_t reopens = 0;
  uint8_t acknowledged = 0;
};

enum class Again { kRecapture, kSameNumber, kNewNumber };

struct Rules {
  Again again = Again::kRecapture;
  bool recapture_unsent = true;  // also what was captured before the cut and not sent yet
  bool counter_survives = true;  // a new order page starts above every number ever used
};

struct Setup {
  uint8_t cuts = 0;
  uint8_t restarts = 0;
  uint8_t reopens = 0;
  std::array<uint8_t, kSenders> rounds = {2, 2};
};

class Reconnect {
 public:
  Reconnect(Rules rules, Setup setup) : rules_(rules), setup_(setup) {}

  Model<State> Build() {
    model_.initial.cuts = setup_.cuts;
    model_.initial.restarts = setup_.restarts;
    model_.initial.reopens = setup_.reopens;
    for (int i = 0; i < kSenders; ++i) {
      model_.initial.senders[i].rounds = setup_.rounds[i];
      AddSender(i);
      AddLink(i);
    }
    AddOthers();
    model_.always = [](const State& s) {
      return std::string(
          (s.acknowledged & ~s.replica) != 0 ? "an acknowledged store is not on the replica any more" : "");
    };
    model_.at_end = [](const State& s) -> std::string {
      const bool done = s.senders[0].pc == kFinished && s.senders[1].pc == kFinished;
      return done ? "" : "a sync waits for ever";
    };
    model_.describe = Describe;
    return model_;
  }

 private:
  void AddSender(int i) {
    Process<State> p(model_, i == 0 ? "A" : "B", [i](State& s) -> uint8_t& { return s.senders[i].pc; });
    p.Do("calls msync", [i](State& s) {
      s.senders[i].must = s.primary;
      return kNext;
    });
    const Flow number = p.Here();
    p.Do("takes the next number", [i](State& s) {
      Sender& me = s.senders[i];
      if (me.link == 0) {
        return kBlocked;
      }
      me.order = ++s.counter;
      me.captured = me.link;
      return kNext;
    });
    p.Do("copies", [i](State& s) {
      s.senders[i].image = s.primary;
      return kNext;
    });
    const Flow send = p.Here();
    p.Do("sends", [this, i, number](State& s) {
      Sender& me = s.senders[i];
      if (me.link == 0) {
        return kBlocked;
      }
      if (me.link != me.captured && rules_.recapture_unsent && rules_.again == Again::kRecapture) {
        return number;
      }
      me.captured = me.link;
      me.flight = kFlying;
      return kNext;
    });
    p.Do("has the acknowledgement, and returns", [i](State& s) {
      Sender& me = s.senders[i];
      if (me.flight != kApplied) {
        return kBlocked;
      }
      s.acknowledged |= me.must;
      me.flight = kNone;
      me.must = me.order = me.image = me.captured = 0;
      return --me.rounds == 0 ? kDone : 0;
    });
    p.Or("sees that its connection was cut", [this, i, number, send](State& s) {
      Sender& me = s.senders[i];
      if (me.flight != kNone || me.link == 0) {
        return kBlocked;
      }
      if (rules_.again == Again::kNewNumber) {
        me.order = ++s.counter;
      }
      return rules_.again == Again::kRecapture ? number : send;
    });
  }

  void AddLink(int i) {
    const std::string name(1, static_cast<char>('A' + i));
    for (const bool late : {false, true}) {
      model_.Anytime("network",
                     "cuts " + name + "'s session" + (late ? "; its frame has arrived, and waits" : ""),
                     [i, late](State& s) {
                       Sender& sender = s.senders[i];
                       if (s.cuts == 0 || sender.link == 0 || (late && sender.flight != kFlying)) {
                         return false;
                       }
                       --s.cuts;
                       if (late) {
                         s.late_image = sender.image;
                         s.late_order = sender.order;
                       }
                       Cut(sender);
                       return true;
                     });
    }
    model_.Anytime("daemon", "connects " + name + "'s session again", [i](State& s) {
      Sender& sender = s.senders[i];
      if (sender.link != 0) {
        return false;
      }
      sender.link = sender.cuts + 1;
      return true;
    });
    model_.Anytime("replica", "applies " + name + "'s frame, or skips it", [i](State& s) {
      Sender& sender = s.senders[i];
      if (sender.flight != kFlying) {
        return false;
      }
      Apply(s, sender.image, sender.order);
      sender.flight = kApplied;
      return true;
    });
  }

  static void Cut(Sender& sender) {
    sender.link = 0;
    ++sender.cuts;
    sender.flight = kNone;
  }

  static void Apply(State& s, uint8_t image, uint8_t order) {
    if (order > s.replica_order) {
      s.replica = image;
      s.replica_order = order;
    }
  }

  void AddOthers() {
    model_.Anytime("program", "stores", [](State& s) {
      if (s.stores == 2) {
        return false;
      }
      s.primary |= 1 << s.stores++;
      return true;
    });
    model_.Anytime("replica", "applies the frame of a gone connection", [](State& s) {
      if (s.late_order == 0) {
        return false;
      }
      Apply(s, s.late_image, s.late_order);
      s.late_image = s.late_order = 0;
      return true;
    });
    model_.Anytime("replica", "restarts: all sessions are cut, the order map is empty", [](State& s) {
      if (s.restarts == 0) {
        return false;
      }
      --s.restarts;
      for (Sender& sender : s.senders) {
        Cut(sender);
      }
      s.late_image = s.late_order = s.replica_order = 0;
      return true;
    });
    model_.Anytime("daemon", "makes the file's order page again, after its last user", [this](State& s) {
      const bool idle = s.senders[0].must + s.senders[0].order + s.senders[1].must + s.senders[1].order == 0;
      if (s.reopens == 0 || !idle) {
        return false;
      }
      --s.reopens;
      s.counter = rules_.counter_survives ? s.counter : 0;
      return true;
    });
  }

  static std::string Describe(const State& s) {
    return "stored " + std::to_string(s.primary) + " counter " + std::to_string(s.counter) +
           " acknowledged " + std::to_string(s.acknowledged) + " replica " + std::to_string(s.replica) + "#" +
           std::to_string(s.replica_order);
  }

  Rules rules_;
  Setup setup_;
  Model<State> model_;
};

void Holds(Rules rules, Setup setup) { ExpectHolds(Reconnect(rules, setup).Build()); }
void Loses(Rules rules, Setup setup) {
  ExpectLoses(Reconnect(rules, setup).Build(), "not on the replica any more");
}

TEST(Trap11Reconnect, RecapturingUnderANewNumberUndoesNothing) {
  Holds({}, {.cuts = 2});
  Holds({}, {.cuts = 1, .restarts = 1, .rounds = {2, 1}});
  Holds({}, {.restarts = 1, .reopens = 1, .rounds = {2, 1}});
}
TEST(Trap11Reconnect, ResendingOldBytesUnderANewNumberUndoesAnAcknowledgedStore) {
  Loses({.again = Again::kNewNumber}, {.cuts = 1});
}
TEST(Trap11Reconnect, ResendingTheSameFrameIsSafeOnlyWhileTheReplicaRemembers) {
  Holds({.again = Again::kSameNumber}, {.cuts = 2});
  Loses({.again = Again::kSameNumber}, {.restarts = 1});
}
TEST(Trap11Reconnect, SendingWhatWasCapturedBeforeARestartUndoesAnAcknowledgedStore) {
  Loses({.recapture_unsent = false}, {.restarts = 1});
}
TEST(Trap11Reconnect, OrderPageThatStartsAgainBelowTheReplicasNumbersLosesAStore) {
  Loses({.counter_survives = false}, {.reopens = 1});
}

}  // namespace
}  // namespace pmirror::model
