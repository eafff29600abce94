// SPDX-License-Identifier: BSD-3-Clause
// The capture order of one file inside one process (or several, each with a page table of its own): threads
// that sync overlapping ranges while another stores, any of them failing and retrying.
// docs/internals/capture-order.md has the argument; traps 1, 2, 3.
//
// One byte stands for an aligned 8-byte word; its bits are the stores that have reached it. A page has one or
// two words. The ticket table is shared by all threads, one atomic access a slot.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "tests/model/enumerate.h"

namespace pmirror::model::capture_order {

inline constexpr int kWords = 2;
inline constexpr int kSlots = 3;
inline constexpr int kMaxSyncers = 3;

enum SlotState : uint8_t { kFree, kOpen, kRedo };
enum Flight : uint8_t { kNone, kFlying, kAcknowledged, kFailed };
inline constexpr uint8_t kNoSlot = 255;

struct Slot {
  uint8_t state{};
  uint8_t pages{};
  uint8_t incarnation{};  // counts openings
};

struct Frame {
  uint8_t order{};
  uint8_t words{};  // bits
  std::array<uint8_t, kWords> image{};
};

struct Syncer {
  uint8_t pc{};
  uint8_t rounds{};                    // calls of msync still to make after this one
  std::array<uint8_t, kWords> must{};  // stores that happened before this call
  uint8_t pages{};                     // to be captured
  uint8_t slot{};                      // of its ticket
  uint8_t waits{};                     // slots that were open after the scan
  uint8_t redo{};                      // slots whose redo range this frame carries
  std::array<uint8_t, kSlots> seen{};  // incarnation of the slots in waits and redo
  uint8_t flight{};
  Frame frame{};
};

struct State {
  std::array<uint8_t, kWords> primary{};
  std::array<uint8_t, 2> dirty{};  // pages, for each page table
  uint8_t counter{};
  uint8_t stores{};  // done by the storing thread
  std::array<Slot, kSlots> slots{};
  std::array<Syncer, kMaxSyncers> syncers{};
  std::array<Frame, 2> strays{};  // frames of failed calls that may still arrive
  std::array<uint8_t, kWords> replica{};
  std::array<uint8_t, kWords> replica_order{};
  uint8_t failures{};  // that may still happen
  uint8_t lost{};      // a call returned success without its stores
};

enum class Order { kScanNumberCopy, kNumberScanCopy, kScanCopyNumber };

// What a variant does, the real rules by default.
struct Rules {
  Order order = Order::kScanNumberCopy;
  bool ticket_before_scan = true;
  bool look_after_scan = true;
  bool wait_for_tickets = true;
  bool wait_only_for_older = false;  // tickets opened before one's own, instead of before one's scan
  bool close_before_wait = true;     // a ticket closes when its own frame is acknowledged
  bool redo_on_failure = true;
  bool redo_in_one_step = true;  // the open ticket itself turns into the redo range
  bool waiter_takes_redo = true;
  bool clear_redo_when_taken = false;  // instead of when its new frame is acknowledged
  bool compare_incarnation = true;
};

struct Setup {
  int words_a_page = 1;
  std::vector<uint8_t> ranges = {0b11, 0b10};  // pages, of each syncer
  std::vector<uint8_t> rounds = {1, 1};        // calls of each syncer
  std::vector<uint8_t> stores = {1, 1, 0};     // the word of each store, in order
  int failures = 0;
  bool processes =
      false;  // syncer i is in process i with its own page table and tickets, the storing thread in process 0
  bool flusher = false;  // the last syncer flushes named words (pmem_persist): no scan, no ticket
};

class CaptureOrder {
 public:
  explicit CaptureOrder(Rules rules, Setup setup) : rules_(rules), setup_(std::move(setup)) {}

  Model<State> Build() {
    model_.initial.failures = static_cast<uint8_t>(setup_.failures);
    for (size_t i = 0; i < setup_.ranges.size(); ++i) {
      model_.initial.syncers[i].rounds = setup_.rounds[i] - 1;
      model_.initial.syncers[i].slot = kNoSlot;
      if (setup_.flusher && i + 1 == setup_.ranges.size()) {
        AddFlusher(i);
      } else {
        AddSyncer(i);
      }
      AddDelivery(i);
    }
    AddStorer();
    AddStrays();
    model_.always = [](const State& s) {
      return std::string(s.lost != 0 ? "a sync returned success and its store is not on the replica" : "");
    };
    model_.at_end = [this](const State& s) { return AtEnd(s); };
    model_.describe = Describe;
    return model_;
  }

 private:
  uint8_t PageOf(int word) const { return static_cast<uint8_t>(1 << (word / setup_.words_a_page)); }
  uint8_t WordsOf(uint8_t pages) const {
    uint8_t words = 0;
    for (int w = 0; w < kWords; ++w) {
      words |= (pages & PageOf(w)) != 0 ? 1 << w : 0;
    }
    return words;
  }
  int TableOf(size_t syncer) const { return setup_.processes ? static_cast<int>(syncer) : 0; }

  void AddStorer() {
    model_.Anytime("storer", "stores", [this](State& s) {
      if (s.stores == setup_.stores.size()) {
        return false;
      }
      const int word = setup_.stores[s.stores];
      s.primary[word] |= 1 << s.stores++;
      s.dirty[0] |= PageOf(word);
      return true;
    });
  }

  void AddSyncer(size_t i) {
    Process<State> p(model_, std::string(1, static_cast<char>('A' + i)),
                     [i](State& s) -> uint8_t& { return s.syncers[i].pc; });
    p.Do("calls msync", [this, i](State& s) { return Start(s, i); });
    if (rules_.ticket_before_scan) {
      AddOpen(p, i);
    }
    if (!rules_.look_after_scan) {
      AddLook(p, i);
    }
    Flow number = p.Here();
    if (rules_.order == Order::kNumberScanCopy) {
      AddNumber(p, i);
    }
    AddScan(p, i);
    if (!rules_.ticket_before_scan) {
      AddOpen(p, i);
    }
    if (rules_.look_after_scan) {
      AddLook(p, i);
    }
    if (rules_.order == Order::kScanNumberCopy) {
      number = p.Here();
      AddNumber(p, i);
    }
    AddCopy(p, i);
    if (rules_.order == Order::kScanCopyNumber) {
      AddNumber(p, i);
    }
    AddSendAndFinish(p, i, number);
  }

  // The same without scan and ticket: its words are named, and their pages stay dirty.
  void AddFlusher(size_t i) {
    Process<State> p(model_, "flusher", [i](State& s) -> uint8_t& { return s.syncers[i].pc; });
    p.Do("calls pmem_persist", [this, i](State& s) {
      s.syncers[i].pages = setup_.ranges[i];
      return Start(s, i);
    });
    AddNumber(p, i);
    AddCopy(p, i);
    p.Do("sends", [i](State& s) {
      s.syncers[i].flight = kFlying;
      return kNext;
    });
    p.Do("has the acknowledgement",
         [i](State& s) { return s.syncers[i].flight == kAcknowledged ? kNext : kBlocked; });
    AddReturn(p, i);
  }

  Flow Start(State& s, size_t i) {
    Syncer& me = s.syncers[i];
    for (int w = 0; w < kWords; ++w) {
      // Stores of another process are the matter of foreign_capture_test.cc.
      const bool mine = TableOf(i) == 0 && (setup_.ranges[i] & PageOf(w)) != 0;
      me.must[w] = mine ? s.primary[w] : 0;
    }
    return kNext;
  }

  void AddOpen(Process<State>& p, size_t i) {
    p.Do("opens its ticket", [this, i](State& s) {
      for (uint8_t k = 0; k < kSlots; ++k) {
        if (s.slots[k].state == kFree) {
          s.slots[k] = {kOpen, setup_.ranges[i], static_cast<uint8_t>(s.slots[k].incarnation + 1)};
          s.syncers[i].slot = k;
          return kNext;
        }
      }
      return kBlocked;
    });
  }

  void AddScan(Process<State>& p, size_t i) {
    for (uint8_t page = 1; page < 1 << (kWords / setup_.words_a_page); page <<= 1) {
      if ((setup_.ranges[i] & page) == 0) {
        continue;
      }
      p.Do("scans and protects page " + std::to_string(page >> 1), [this, i, page](State& s) {
        uint8_t& dirty = s.dirty[TableOf(i)];
        s.syncers[i].pages |= dirty & page;
        dirty &= ~page;
        return kNext;
      });
    }
  }

  // One look at each slot, not all at one instant.
  void AddLook(Process<State>& p, size_t i) {
    for (uint8_t k = 0; k < kSlots; ++k) {
      p.Do("looks at ticket slot " + std::to_string(k), [this, i, k](State& s) {
        Syncer& me = s.syncers[i];
        Slot& slot = s.slots[k];
        const bool mine = me.slot == k;
        if (mine || (slot.pages & setup_.ranges[i]) == 0 || setup_.processes) {
          return kNext;
        }
        if (slot.state == kOpen && rules_.wait_for_tickets && !(rules_.wait_only_for_older && k > me.slot)) {
          me.waits |= 1 << k;
          me.seen[k] = slot.incarnation;
        } else if (slot.state == kRedo) {
          me.pages |= slot.pages;
          me.redo |= 1 << k;
          me.seen[k] = slot.incarnation;
          if (rules_.clear_redo_when_taken) {
            slot.state = kFree;
          }
        }
        return kNext;
      });
    }
  }

  void AddNumber(Process<State>& p, size_t i) {
    p.Do("takes the next number", [this, i](State& s) {
      Syncer& me = s.syncers[i];
      if (me.pages != 0 || rules_.order == Order::kNumberScanCopy) {
        me.frame.order = ++s.counter;
      }
      return kNext;
    });
  }

  // Word by word: a page that changes meanwhile is torn.
  void AddCopy(Process<State>& p, size_t i) {
    const Flow again = p.Here();
    p.Do("copies a word", [this, i, again](State& s) {
      Syncer& me = s.syncers[i];
      const uint8_t wanted = WordsOf(me.pages);
      for (int w = 0; w < kWords; ++w) {
        if ((wanted & ~me.frame.words & 1 << w) != 0) {
          me.frame.words |= 1 << w;
          me.frame.image[w] = s.primary[w];
          return me.frame.words == wanted ? kNext : again;
        }
      }
      return kNext;
    });
  }

  void AddSendAndFinish(Process<State>& p, size_t i, Flow number) {
    p.Do("sends what it copied", [i](State& s) {
      s.syncers[i].flight = s.syncers[i].pages != 0 ? kFlying : kAcknowledged;
      return kNext;
    });
    p.Do("has the acknowledgement",
         [i](State& s) { return s.syncers[i].flight == kAcknowledged ? kNext : kBlocked; });
    p.Or("loses its session; its frame is lost", [i](State& s) { return Fail(s, i) ? kNext : kBlocked; });
    p.Or("loses its session; its frame may still arrive", [i](State& s) {
      if (!Fail(s, i)) {
        return kBlocked;
      }
      s.strays[s.failures] = s.syncers[i].frame;
      return kNext;
    });
    if (rules_.close_before_wait) {
      AddSettle(p, i);
      AddWait(p, i, number);
    } else {
      AddWait(p, i, number);
      AddSettle(p, i);
    }
    AddReturn(p, i);
  }

  static bool Fail(State& s, size_t i) {
    if (s.syncers[i].flight != kFlying || s.failures == 0) {
      return false;
    }
    --s.failures;
    s.syncers[i].flight = kFailed;
    return true;
  }

  // The ticket closes, or turns into a redo range. (A frame that carried somebody else's redo range after
  // that has no ticket.)
  void AddSettle(Process<State>& p, size_t i) {
    p.Do("settles its ticket", [this, i](State& s) {
      Syncer& me = s.syncers[i];
      if (me.flight == kAcknowledged) {
        ClearRedo(s, me);
      }
      if (me.slot != kNoSlot) {
        const bool redo = me.flight == kFailed && rules_.redo_on_failure && rules_.redo_in_one_step;
        s.slots[me.slot].state = redo ? kRedo : kFree;
        s.slots[me.slot].pages = redo ? me.pages : 0;
        me.slot = redo || rules_.redo_in_one_step ? kNoSlot : me.slot;
      }
      return kNext;
    });
    if (!rules_.redo_in_one_step) {
      p.Do("writes the redo range", [i](State& s) {
        Syncer& me = s.syncers[i];
        if (me.flight == kFailed && me.slot != kNoSlot) {
          if (s.slots[me.slot].state != kFree) {
            return kBlocked;
          }
          s.slots[me.slot].state = kRedo;
          s.slots[me.slot].pages = me.pages;
        }
        me.slot = kNoSlot;
        return kNext;
      });
    }
  }

  void ClearRedo(State& s, Syncer& me) const {
    for (uint8_t k = 0; k < kSlots; ++k) {
      const bool same = s.slots[k].incarnation == me.seen[k] || !rules_.compare_incarnation;
      if ((me.redo & 1 << k) != 0 && s.slots[k].state == kRedo && same) {
        s.slots[k].state = kFree;
        s.slots[k].pages = 0;
      }
    }
    me.redo = 0;
  }

  // Other threads' tickets that were open after the scan: until they have closed. One that failed is captured
  // here.
  void AddWait(Process<State>& p, size_t i, Flow number) {
    p.Do("has waited for the tickets it saw", [this, i, number](State& s) {
      Syncer& me = s.syncers[i];
      for (uint8_t k = 0; k < kSlots && me.flight != kFailed; ++k) {
        if ((me.waits & 1 << k) == 0) {
          continue;
        }
        const bool same = s.slots[k].incarnation == me.seen[k];
        if (same && s.slots[k].state == kOpen) {
          return kBlocked;
        }
        me.waits &= ~(1 << k);
        if (same && s.slots[k].state == kRedo && rules_.waiter_takes_redo) {
          me.redo = static_cast<uint8_t>(1 << k);
          me.pages = s.slots[k].pages;
          me.frame = {};
          return number;
        }
      }
      return kNext;
    });
  }

  void AddReturn(Process<State>& p, size_t i) {
    p.Do("returns", [i](State& s) {
      Syncer& me = s.syncers[i];
      for (int w = 0; w < kWords && me.flight != kFailed; ++w) {
        s.lost |= (me.must[w] & ~s.replica[w]) != 0 ? 1 : 0;
      }
      const uint8_t rounds = me.rounds;
      const uint8_t pc = me.pc;
      me = {.pc = pc, .slot = kNoSlot};
      if (rounds == 0) {
        return kDone;
      }
      me.rounds = rounds - 1;
      return 0;
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

  void AddDelivery(size_t i) {
    model_.Anytime("replica", "applies what " + std::string(1, static_cast<char>('A' + i)) + " sent",
                   [i](State& s) {
                     Syncer& sender = s.syncers[i];
                     if (sender.flight != kFlying) {
                       return false;
                     }
                     Apply(s, sender.frame);
                     sender.flight = kAcknowledged;
                     return true;
                   });
  }

  void AddStrays() {
    for (size_t k = 0; k < model_.initial.strays.size(); ++k) {
      model_.Anytime("replica", "applies a frame of a lost session", [k](State& s) {
        if (s.strays[k].words == 0) {
          return false;
        }
        Apply(s, s.strays[k]);
        s.strays[k] = {};
        return true;
      });
    }
  }

  // A further sync of everything would find each difference: the page is dirty, or it is in a redo range.
  std::string AtEnd(const State& s) const {
    uint8_t known = s.dirty[0] | s.dirty[1];
    for (const Slot& slot : s.slots) {
      known |= slot.state == kRedo ? slot.pages : 0;
    }
    for (size_t i = 0; i < setup_.ranges.size(); ++i) {
      if (s.syncers[i].pc != kFinished) {
        return "a sync waits for ever";
      }
    }
    for (int w = 0; w < kWords; ++w) {
      if (s.replica[w] != s.primary[w] && (known & PageOf(w)) == 0) {
        return "the copies differ and nobody knows";
      }
    }
    return "";
  }

  static std::string Describe(const State& s) {
    std::string out = "stored";
    for (int w = 0; w < kWords; ++w) {
      out += " " + std::to_string(s.primary[w]);
    }
    out += " dirty " + std::to_string(s.dirty[0] | s.dirty[1]) + " replica";
    for (int w = 0; w < kWords; ++w) {
      out += " " + std::to_string(s.replica[w]) + "#" + std::to_string(s.replica_order[w]);
    }
    return out + " tickets " + Slots(s);
  }
  static std::string Slots(const State& s) {
    std::string out;
    for (const Slot& slot : s.slots) {
      out += slot.state == kFree ? "-" : slot.state == kOpen ? "o" : "R";
    }
    return out;
  }

  Rules rules_;
  Setup setup_;
  Model<State> model_;
};

}  // namespace pmirror::model::capture_order
