// SPDX-License-Identifier: BSD-3-Clause
// The capture logs of one volume, and the cut through all of them (docs/internals/rpo.md): what programs and the daemon itself captured, and
// the operations on the tree, up to one point.
//
// Thread-safe. A cut waits for no program.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "fs/event_sink.h"
#include "fs/foreign_stores.h"
#include "fs/operation_log.h"
#include "fs/shared_object.h"
#include "fs/volume_page_owner.h"
#include "recovery/batch.h"
#include "replication/capture_reader.h"
#include "replication/replicate.h"

namespace pmirror::fs {

// CLOCK_REALTIME nanoseconds.
uint64_t WallNow();

class Cutter {
 public:
  // All must outlive the cutter. RESOURCE_EXHAUSTED: no memory.
  static absl::StatusOr<std::unique_ptr<Cutter>> Create(std::string volume_name, VolumePageOwner& page,
                                                        const OperationLog& log, EventSink& events);

  // The daemon's own log.
  CaptureOutlet outlet() { return {.clock = &*clock_, .log = own_writer_.get()}; }
  CaptureClock& clock() { return *clock_; }
  int clock_fd() const { return clock_.fd(); }

  // A program's log, made when it has none; the descriptor belongs to the cutter. It may go on writing until CloseLog.
  absl::StatusOr<int> OpenLog(ProcessSerial program);
  // The program is gone: its log ends with the next cut.
  void CloseLog(ProcessSerial program);

  // The operation was appended to the volume's log. Requires: the caller holds the lock under which it was.
  void NoteOperation(uint64_t number);

  struct Point {
    uint64_t number = 0;
    Deadline::Duration at{};  // CLOCK_MONOTONIC, before it
    uint64_t wall = 0;        // CLOCK_REALTIME nanoseconds
    uint64_t bytes = 0;       // captured before it, ever
    uint64_t syncs = 0;
    uint64_t last_operation = 0;
  };
  struct Cut {
    Point point;
    recovery::BatchBuilder content;
    bool faulty = false;  // a program's log was not as a writer leaves it: what was in it is lost
  };
  // `at_rest` runs what it is given while nothing changes the tree, and tells the number of the last operation.
  using AtRest = std::function<void(absl::FunctionRef<void(uint64_t last)>)>;
  Cut Make(const AtRest& at_rest);

  // While nobody cuts: the logs of programs that are gone end, with what is in them.
  void DropClosedLogs();
  // Share of the fullest log that is in use, 0 to 1.
  double fill() const;
  uint64_t last_operation() const;  // of the last cut

 private:
  struct Log {
    explicit Log(SharedObject<CaptureLogMemory> shared) : memory(std::move(shared)), reader(*memory) {}
    SharedObject<CaptureLogMemory> memory;
    CaptureReader reader;
    bool closed = false;
  };
  struct Taken {
    uint64_t number = 0;
    FileId file{};
    std::vector<WireRange> ranges;
    std::shared_ptr<const std::vector<std::byte>> payload;
  };
  struct Mark {
    uint64_t operation = 0;
    uint64_t number = 0;  // of the clock
  };

  Cutter(std::string volume_name, VolumePageOwner& page, const OperationLog& log, EventSink& events,
         SharedObject<CaptureClock> clock);
  static absl::StatusOr<std::unique_ptr<Log>> MakeLog();
  std::vector<Taken> Collect(Cut& cut);
  void Merge(std::vector<Taken> captures, Cut& cut);

  const std::string volume_name_;
  VolumePageOwner& page_;
  const OperationLog& log_;
  EventSink& events_;
  SharedObject<CaptureClock> clock_;
  std::unique_ptr<CaptureWriter> own_writer_;

  mutable std::mutex logs_mutex_;  // after cut_mutex_
  std::unique_ptr<Log> own_;       // guarded by logs_mutex_, as all below
  std::map<ProcessSerial, std::unique_ptr<Log>> programs_;

  std::mutex marks_mutex_;
  std::deque<Mark> marks_;  // guarded by marks_mutex_; of operations behind the last cut

  mutable std::mutex cut_mutex_;
  uint64_t last_operation_ = 0;  // guarded by cut_mutex_
};

}  // namespace pmirror::fs
