// SPDX-License-Identifier: BSD-3-Clause
// Explicit-state enumeration: visits every state that any interleaving of a few small processes can reach,
// and checks a property in each. It is how the ordering arguments of docs/internals/capture-order.md are
// checked, and how the tempting wrong orders are shown to lose data.
//
// A model is a plain State of bytes, processes made of atomic steps, and two properties: one that holds in
// every state, one that holds where nothing can move any more (so a deadlock is an end state in which
// somebody is not done). The search is breadth first, so the counterexample that it prints is a shortest one.
// Its size is bounded by `max_states`: a model that outgrows it fails, it is never called exhausted when it
// was not.
//
// Single-threaded. A step must be a function of the state alone.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iostream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace pmirror::model {

// What a step says about its process: where it goes on. Values of 0 and more are places given by
// Process::Here().
using Flow = int;
constexpr Flow kBlocked = -1;  // the step cannot run in this state; whatever it wrote is discarded
constexpr Flow kNext = -2;     // the following step
constexpr Flow kDone = -3;     // the process is finished
constexpr uint8_t kFinished = 255;

template <typename State>
struct Step {
  std::string who;
  std::string what;
  std::function<bool(State&)> run;  // false: not enabled
  // A step of a Process: where its program counter lies in the state, and the value at which the step comes.
  // Spares the call.
  ptrdiff_t pc_offset = -1;
  uint8_t place = 0;
};

template <typename State>
struct Model {
  State initial{};
  std::vector<Step<State>> steps;
  std::function<std::string(const State&)> always;    // empty when the property holds, else what is wrong
  std::function<std::string(const State&)> at_end;    // the same, for states in which no step is enabled
  std::function<std::string(const State&)> describe;  // one short line for the counterexample

  // Adds a step that belongs to nobody's program: the network, the replica, a fault.
  void Anytime(std::string who, std::string what, std::function<bool(State&)> run) {
    steps.push_back({.who = std::move(who), .what = std::move(what), .run = std::move(run)});
  }
};

// Builds one sequential process of a model. `pc` finds its program counter in the state; it starts at 0 and
// ends at kFinished.
template <typename State>
class Process {
 public:
  using Pc = std::function<uint8_t&(State&)>;
  using Body = std::function<Flow(State&)>;

  Process(Model<State>& model, std::string name, Pc pc)
      : model_(model), name_(std::move(name)), pc_(std::move(pc)) {}

  // The place of the next step, for a jump to it.
  Flow Here() const { return next_; }

  // The next step.
  Process& Do(std::string what, Body body) {
    Add(next_++, std::move(what), std::move(body));
    return *this;
  }
  // Another thing that may happen instead of the last step.
  Process& Or(std::string what, Body body) {
    Add(next_ - 1, std::move(what), std::move(body));
    return *this;
  }
  // The process ends after its last step.
  void End() {
    Add(next_++, "", [](State&) { return kDone; });
  }

 private:
  void Add(int place, std::string what, Body body) {
    const ptrdiff_t offset = &pc_(model_.initial) - reinterpret_cast<uint8_t*>(&model_.initial);
    model_.steps.push_back({name_, std::move(what),
                            [pc = pc_, place, body = std::move(body)](State& state) {
                              const Flow flow = body(state);
                              if (flow == kBlocked) {
                                return false;
                              }
                              const int target = flow == kNext ? place + 1 : flow;
                              pc(state) = flow == kDone ? kFinished : static_cast<uint8_t>(target);
                              return true;
                            },
                            offset, static_cast<uint8_t>(place)});
  }

  Model<State>& model_;
  std::string name_;
  Pc pc_;
  int next_ = 0;
};

struct Verdict {
  bool holds = false;
  bool exhausted = false;  // every reachable state was visited
  size_t states = 0;
  std::string violated{};
  std::string trace{};  // one line a step, a shortest way into the violation
};

namespace internal {

template <typename State>
class Search {
 public:
  explicit Search(const Model<State>& model) : model_(model), table_(1 << 16) {
    // States are compared as bytes, so padding would make equal states differ.
    static_assert(std::has_unique_object_representations_v<State>);
    static_assert(std::is_trivially_copyable_v<State>);
  }

  Verdict Run(size_t max_states) {
    Visit(model_.initial, 0, kNoStep);
    for (uint32_t index = 0; index < states_.size(); ++index) {
      if (states_.size() > max_states) {
        return {.states = states_.size(), .violated = "more states than the limit allows"};
      }
      std::string wrong = model_.always ? model_.always(states_[index]) : "";
      if (wrong.empty() && !Expand(index)) {
        wrong = model_.at_end ? model_.at_end(states_[index]) : "";
      }
      if (!wrong.empty()) {
        return {.states = states_.size(), .violated = wrong, .trace = Trace(index)};
      }
    }
    return {.holds = true, .exhausted = true, .states = states_.size()};
  }

 private:
  static constexpr uint16_t kNoStep = UINT16_MAX;
  struct Origin {
    uint32_t parent;
    uint16_t step;
  };
  // An entry of the open-addressed table of visited states; `index` is one more than the state's, 0 is empty.
  struct Entry {
    uint32_t index = 0;
    uint32_t hash = 0;
  };

  static uint32_t Hash(const State& state) {
    const std::string_view bytes(reinterpret_cast<const char*>(&state), sizeof(State));
    return static_cast<uint32_t>(std::hash<std::string_view>{}(bytes));
  }

  void Visit(const State& state, uint32_t parent, uint16_t step) {
    const uint32_t hash = Hash(state);
    const size_t mask = table_.size() - 1;
    size_t at = hash & mask;
    for (; table_[at].index != 0; at = (at + 1) & mask) {
      const Entry& entry = table_[at];
      if (entry.hash == hash && std::memcmp(&states_[entry.index - 1], &state, sizeof(State)) == 0) {
        return;
      }
    }
    states_.push_back(state);
    origins_.push_back({parent, step});
    table_[at] = {static_cast<uint32_t>(states_.size()), hash};
    if (states_.size() * 2 > table_.size()) {
      Grow();
    }
  }

  void Grow() {
    std::vector<Entry> larger(table_.size() * 2);
    const size_t mask = larger.size() - 1;
    for (const Entry& entry : table_) {
      if (entry.index != 0) {
        size_t at = entry.hash & mask;
        while (larger[at].index != 0) {
          at = (at + 1) & mask;
        }
        larger[at] = entry;
      }
    }
    table_ = std::move(larger);
  }

  uint8_t Byte(uint32_t index, ptrdiff_t offset) const {
    return reinterpret_cast<const uint8_t*>(&states_[index])[offset];
  }

  // Visits what follows. Returns false when nothing can move.
  bool Expand(uint32_t index) {
    bool moved = false;
    for (size_t i = 0; i < model_.steps.size(); ++i) {
      const Step<State>& step = model_.steps[i];
      if (step.pc_offset >= 0 && Byte(index, step.pc_offset) != step.place) {
        continue;
      }
      State after = states_[index];
      if (step.run(after)) {
        moved = true;
        Visit(after, index, static_cast<uint16_t>(i));
      }
    }
    return moved;
  }

  std::string Trace(uint32_t index) const {
    std::vector<uint32_t> path;
    for (; origins_[index].step != kNoStep; index = origins_[index].parent) {
      path.push_back(index);
    }
    std::string out;
    for (auto at = path.rbegin(); at != path.rend(); ++at) {
      const Step<State>& step = model_.steps[origins_[*at].step];
      if (step.what.empty()) {
        continue;  // the end of a process
      }
      std::string line =
          "    " + step.who + std::string(step.who.size() < 8 ? 8 - step.who.size() : 1, ' ') + step.what;
      if (model_.describe) {
        line +=
            std::string(line.size() < 68 ? 68 - line.size() : 1, ' ') + "| " + model_.describe(states_[*at]);
      }
      out += line + "\n";
    }
    return out;
  }

  const Model<State>& model_;
  std::vector<State> states_;
  std::vector<Origin> origins_;
  std::vector<Entry> table_;
};

}  // namespace internal

constexpr size_t kMaxStates = 6'000'000;

template <typename State>
Verdict Enumerate(const Model<State>& model, size_t max_states = kMaxStates) {
  return internal::Search<State>(model).Run(max_states);
}

// The real order: every reachable state was visited and none breaks a property.
template <typename State>
void ExpectHolds(const Model<State>& model) {
  const Verdict verdict = Enumerate(model);
  EXPECT_TRUE(verdict.holds && verdict.exhausted) << verdict.violated << "\n" << verdict.trace;
  std::cout << (verdict.exhausted ? "  holds in all " : "  gave up after ") << verdict.states << " states\n";
}

// A wrong order: the enumeration finds that it breaks the property that `violated` names, and prints how.
template <typename State>
void ExpectLoses(const Model<State>& model, std::string_view violated) {
  const Verdict verdict = Enumerate(model);
  EXPECT_FALSE(verdict.holds) << "the wrong order passed in all " << verdict.states << " states";
  EXPECT_FALSE(verdict.trace.empty()) << verdict.violated;  // not merely too many states
  EXPECT_NE(verdict.violated.find(violated), std::string::npos) << verdict.violated << "\n" << verdict.trace;
  std::cout << "  counterexample: " << verdict.violated << "\n" << verdict.trace;
}

}  // namespace pmirror::model
