// SPDX-License-Identifier: BSD-3-Clause
// What happened on this node, kept: the events of the log with numbers that go on over restarts, in memory for
// readers and in a bounded file of the state directory.
//
// Append never waits for the disk. A number is given once, also when the daemon is killed. A disk that is full
// or fails costs nothing but the file: events stay in memory, and those that are still there are written when
// that is possible again. What cannot be read of the file is skipped, and said. Thread-safe.
//
// The file is `events.jsonl`, before it `events.1.jsonl`, each of at most half of the size limit; journal_line.h
// has their form.
// ---
// For maintainers: one thread writes. It takes what is newer than `written_` from the ring, so that the ring
// is the only queue, and its bound the only one. Events from before Open have no numbers yet and wait in
// `early_`. A clean end is known by the last line (Close writes everything); after any other end the file may
// lack numbers that readers have seen, and kNumbersLeftOut are left out.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "replication/unique_fd.h"
#include "server/journal_line.h"

namespace pmirror::server {

class EventJournal {
 public:
  struct Options {
    std::string node = {};
    uint64_t file_bytes = 4 << 20;  // of both files together
    size_t held = 10'000;           // events in memory
    // Where the journal tells what happened to itself; empty: Append. Called with no lock held.
    std::function<void(LogLevel, std::string_view, const Event::Fields&)> report = {};
  };
  static constexpr uint64_t kNumbersLeftOut = 1000;
  static constexpr std::chrono::seconds kWritePause{
      5};  // before a failed write is tried again without an event

  explicit EventJournal(Options options);
  // Close().
  ~EventJournal();
  EventJournal(const EventJournal&) = delete;
  EventJournal& operator=(const EventJournal&) = delete;

  // Reads the files in `directory` and writes there from now on. Requires: nobody else does. Never fails:
  // what it cannot read or write it reports as events.
  void Open(const std::string& directory);
  // Writes what there is to write, once, and ends the readers. Events that come later are not kept.
  void Close();

  void Append(EventTime time, LogLevel severity, const std::string& name, const Event::Fields& fields);

  struct Page {
    std::vector<Event> events;  // in the order of their numbers, at most `limit`
    bool gap = false;           // older ones than the first, which are newer than `after`, are gone
  };
  // What is newer than `after`. An `after` that was never given counts as 0: the state directory is another.
  Page Read(uint64_t after, size_t limit) const;
  // Waits until there is something newer than `after`, Wake, Close or the time has passed; true in the first case.
  bool Wait(uint64_t after, std::chrono::milliseconds timeout) const;
  // Ends every Wait that is under way.
  void Wake();

 private:
  struct Loaded {
    std::vector<Event> events;
    uint64_t damaged = 0;  // lines
    std::string text;      // of the lines that are good
  };

  // Lines whose numbers are not above `behind` and those before them count as damaged.
  static Loaded Load(const std::string& path, uint64_t behind);
  // Replaces a file that has damaged lines by its good ones.
  static void Mend(const std::string& path, const std::string& text);
  void Report(LogLevel severity, std::string_view name, const Event::Fields& fields);
  void Number(Event event);             // Requires: mutex_
  bool IsBehind(uint64_t after) const;  // Requires: mutex_
  bool HasUnwritten() const;            // Requires: mutex_
  void WriteLoop();
  // Writes `lines` and makes them durable; false and `why` when that failed: nothing of them is in the file.
  bool WriteLines(const std::string& lines, std::string& why);
  bool Rotate(std::string& why);
  void NoteOutcome(bool written, const std::string& why);

  const Options options_;

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool open_ = false;
  bool closing_ = false;
  uint64_t wakes_ = 0;
  uint64_t last_ = 0;     // number given last
  uint64_t written_ = 0;  // number that is in the file, with all before it that were not lost
  uint64_t lost_ = 0;     // gone from memory before they were written, since the last that were said
  std::deque<Event> ring_;
  std::vector<Event> early_;  // from before Open
  std::thread writer_;

  // Of the writing thread, and of Open before it.
  std::string directory_;
  UniqueFd file_;
  uint64_t file_size_ = 0;
  bool failing_ = false;  // the last write did, and that was said
};

}  // namespace pmirror::server
