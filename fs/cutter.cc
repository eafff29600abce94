// SPDX-License-Identifier: BSD-3-Clause
// The passes over the logs, and the order in which what they give becomes a batch. See cutter.h.
#include "fs/cutter.h"

#include <algorithm>
#include <utility>

#include "replication/namespace_op.h"

namespace pmirror::fs {

uint64_t WallNow() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

Cutter::Cutter(std::string volume_name, VolumePageOwner& page, const OperationLog& log, EventSink& events,
               SharedObject<CaptureClock> clock)
    : volume_name_(std::move(volume_name)),
      page_(page),
      log_(log),
      events_(events),
      clock_(std::move(clock)) {}

absl::StatusOr<std::unique_ptr<Cutter>> Cutter::Create(std::string volume_name, VolumePageOwner& page,
                                                       const OperationLog& log, EventSink& events) {
  absl::StatusOr<SharedObject<CaptureClock>> clock =
      SharedObject<CaptureClock>::Create("pmirror-capture-clock", Receivers::kReadWrite);
  if (!clock.ok()) {
    return clock.status();
  }
  (*clock)->next = 1;
  std::unique_ptr<Cutter> cutter(new Cutter(std::move(volume_name), page, log, events, *std::move(clock)));
  absl::StatusOr<std::unique_ptr<Log>> own = MakeLog();
  if (!own.ok()) {
    return own.status();
  }
  cutter->own_ = *std::move(own);
  cutter->own_writer_ = std::make_unique<CaptureWriter>(*cutter->own_->memory);
  return cutter;
}

absl::StatusOr<std::unique_ptr<Cutter::Log>> Cutter::MakeLog() {
  absl::StatusOr<SharedObject<CaptureLogMemory>> memory =
      SharedObject<CaptureLogMemory>::Create("pmirror-capture-log", Receivers::kReadWrite);
  if (!memory.ok()) {
    return memory.status();
  }
  CaptureReader::Initialise(**memory);
  return std::make_unique<Log>(*std::move(memory));
}

absl::StatusOr<int> Cutter::OpenLog(ProcessSerial program) {
  const std::lock_guard lock(logs_mutex_);
  std::unique_ptr<Log>& log = programs_[program];
  if (log == nullptr) {
    absl::StatusOr<std::unique_ptr<Log>> made = MakeLog();
    if (!made.ok()) {
      programs_.erase(program);
      return made.status();
    }
    log = *std::move(made);
  }
  return log->memory.fd();
}

void Cutter::CloseLog(ProcessSerial program) {
  const std::lock_guard lock(logs_mutex_);
  if (const auto it = programs_.find(program); it != programs_.end()) {
    it->second->closed = true;
  }
}

void Cutter::NoteOperation(uint64_t number) {
  const std::lock_guard lock(marks_mutex_);
  marks_.push_back({.operation = number, .number = clock_->next.fetch_add(1, std::memory_order_seq_cst)});
}

Cutter::Cut Cutter::Make(const AtRest& at_rest) {
  const std::lock_guard lock(cut_mutex_);
  Cut cut;
  cut.point.wall = WallNow();
  cut.point.at = Deadline::Now();
  cut.point.bytes = clock_->bytes.load(std::memory_order_relaxed);
  cut.point.syncs = clock_->syncs.load(std::memory_order_relaxed);
  at_rest([&](uint64_t last) {
    page_.AnnounceCut();
    cut.point.number = clock_->next.fetch_add(1, std::memory_order_seq_cst);
    page_.PublishCut(cut.point.number);
    cut.point.last_operation = last;
  });
  Merge(Collect(cut), cut);
  last_operation_ = cut.point.last_operation;
  return cut;
}

std::vector<Cutter::Taken> Cutter::Collect(Cut& cut) {
  std::vector<Taken> captures;
  const auto pass = [&](Log& log) {
    return log.reader.Pass(cut.point.number, [&](const CaptureReader::Capture& capture) {
      captures.push_back({.number = capture.number,
                          .file = capture.file,
                          .ranges = {capture.ranges.begin(), capture.ranges.end()},
                          .payload = std::make_shared<const std::vector<std::byte>>(capture.payload.begin(),
                                                                                    capture.payload.end())});
    });
  };
  const std::lock_guard lock(logs_mutex_);
  cut.faulty = !pass(*own_);
  for (auto it = programs_.begin(); it != programs_.end();) {
    const bool closed = it->second->closed;  // before the pass: nothing comes after it
    if (!pass(*it->second)) {
      cut.faulty = true;
      events_.Report(
          Severity::kError, "capture_log_damaged",
          {{"volume", volume_name_}, {"program", std::to_string(static_cast<uint64_t>(it->first))}});
      it = programs_.erase(it);
    } else {
      it = closed ? programs_.erase(it) : std::next(it);
    }
  }
  std::sort(captures.begin(), captures.end(),
            [](const Taken& a, const Taken& b) { return a.number < b.number; });
  return captures;
}

// In the order of the clock.
void Cutter::Merge(std::vector<Taken> captures, Cut& cut) {
  std::deque<Mark> marks;
  {
    const std::lock_guard lock(marks_mutex_);
    while (!marks_.empty() && marks_.front().operation <= cut.point.last_operation) {
      marks.push_back(marks_.front());
      marks_.pop_front();
    }
  }
  const auto append = [&] {
    const Mark mark = marks.front();
    marks.pop_front();
    OperationLog::Bytes bytes = log_.Get(mark.operation);
    const Result<NamespaceOp> op = bytes == nullptr ? Result<NamespaceOp>(Error{ENOENT, "find an operation"})
                                                    : DecodeNamespaceOp(*bytes);
    cut.faulty = cut.faulty || !op.ok();
    if (op.ok()) {
      cut.content.Append(mark.operation, std::move(bytes), op.value());
    }
  };
  for (Taken& capture : captures) {
    while (!marks.empty() && marks.front().number < capture.number) {
      append();
    }
    cut.content.Lay(capture.file, capture.ranges, std::move(capture.payload));
  }
  while (!marks.empty()) {
    append();
  }
}

void Cutter::DropClosedLogs() {
  const std::lock_guard lock(logs_mutex_);
  std::erase_if(programs_, [](const auto& program) { return program.second->closed; });
}

double Cutter::fill() const {
  const std::lock_guard lock(logs_mutex_);
  double most = own_->reader.fill();
  for (const auto& [program, log] : programs_) {
    most = std::max(most, log->reader.fill());
  }
  return most;
}

uint64_t Cutter::last_operation() const {
  const std::lock_guard lock(cut_mutex_);
  return last_operation_;
}

}  // namespace pmirror::fs
