// SPDX-License-Identifier: BSD-3-Clause
// The journal's memory, its readers and its writing thread. The lines themselves: journal_line.cc.
#include "server/event_journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>

#include "server/journal_line.h"

namespace pmirror::server {
namespace {

constexpr char kCurrent[] = "/events.jsonl";
constexpr char kOlder[] = "/events.1.jsonl";
constexpr size_t kMaxEarly = 100;  // events before Open: the daemon has said hardly more than that it starts
constexpr size_t kWrittenAtOnce = 256;  // events

std::string Failure(const char* doing, const std::string& path) {
  return fmt::format("cannot {} {}: {}", doing, path, std::strerror(errno));
}

// The directory's entries are durable; nobody can do anything about it when not.
void SyncDirectory(const std::string& directory) {
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  (void)::fsync(fd.get());
}

bool IsBefore(uint64_t seq, const Event& event) { return seq < event.seq; }

bool WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = ::write(fd, text.data(), text.size());
    if (count < 0 && errno != EINTR) {
      return false;
    }
    text.remove_prefix(static_cast<size_t>(std::max<ssize_t>(count, 0)));
  }
  return true;
}

}  // namespace

EventJournal::EventJournal(Options options) : options_(std::move(options)) {}

EventJournal::~EventJournal() { Close(); }

EventJournal::Loaded EventJournal::Load(const std::string& path, uint64_t behind) {
  Loaded loaded;
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    const std::string_view line =
        std::string_view(text).substr(at, end - at);  // to the end when there is none
    at = end == std::string::npos ? text.size() : end + 1;
    Event event;
    if (end == std::string::npos || !ParseJournalLine(line, event) || event.seq <= behind) {
      ++loaded.damaged;
      continue;
    }
    behind = event.seq;
    loaded.text.append(line).push_back('\n');
    loaded.events.push_back(std::move(event));
  }
  return loaded;
}

void EventJournal::Mend(const std::string& path, const std::string& text) {
  const std::string fresh = path + ".new";
  UniqueFd file(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  const bool good = file.valid() && WriteAll(file.get(), text) && ::fsync(file.get()) == 0;
  if (!good || ::rename(fresh.c_str(), path.c_str()) != 0) {
    ::unlink(fresh.c_str());  // the damage stays, and is told again at the next start
  }
}

void EventJournal::Open(const std::string& directory) {
  directory_ = directory;
  std::vector<Event::Fields> damages;
  {
    const std::lock_guard lock(mutex_);
    for (const char* name : {kOlder, kCurrent}) {
      const std::string path = directory + name;
      Loaded loaded = Load(path, last_);
      if (loaded.damaged > 0) {
        Mend(path, loaded.text);
        damages.push_back({{"file", path}, {"lines", std::to_string(loaded.damaged)}});
      }
      for (Event& event : loaded.events) {
        last_ = event.seq;
        ring_.push_back(std::move(event));
      }
    }
    while (ring_.size() > options_.held) {
      ring_.pop_front();
    }
    written_ = last_;
    if (last_ > 0 && ring_.back().name != "stopped") {
      last_ += kNumbersLeftOut;
    }
    open_ = true;
    for (Event& event : early_) {
      Number(std::move(event));
    }
    early_.clear();
  }
  for (const Event::Fields& fields : damages) {
    Report(LogLevel::kWarn, "journal_damaged", fields);
  }
  writer_ = std::thread([this] { WriteLoop(); });
}

void EventJournal::Close() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  if (writer_.joinable()) {
    writer_.join();
  }
}

void EventJournal::Report(LogLevel severity, std::string_view name, const Event::Fields& fields) {
  if (options_.report) {
    options_.report(severity, name, fields);
  } else {
    Append(std::chrono::system_clock::now(), severity, std::string(name), fields);
  }
}

void EventJournal::Append(EventTime time, LogLevel severity, const std::string& name,
                          const Event::Fields& fields) {
  Event event{
      .time = time, .severity = severity, .name = KeptText(name), .node = options_.node, .fields = {}};
  for (const auto& [key, value] : fields) {
    event.fields.emplace_back(KeptText(key), KeptText(value));
  }
  {
    const std::lock_guard lock(mutex_);
    if (closing_) {
      return;
    }
    if (!open_) {
      if (early_.size() < kMaxEarly) {
        early_.push_back(std::move(event));
      }
      return;
    }
    Number(std::move(event));
  }
  changed_.notify_all();
}

void EventJournal::Number(Event event) {
  event.seq = ++last_;
  ring_.push_back(std::move(event));
  if (ring_.size() > options_.held) {
    lost_ += ring_.front().seq > written_ ? 1 : 0;
    ring_.pop_front();
  }
}

// Requires: mutex_.
bool EventJournal::IsBehind(uint64_t after) const {
  return !ring_.empty() && (ring_.back().seq > after || after > last_);
}

EventJournal::Page EventJournal::Read(uint64_t after, size_t limit) const {
  const std::lock_guard lock(mutex_);
  Page page;
  if (after > last_) {
    after = 0;
  }
  const auto first = std::upper_bound(ring_.begin(), ring_.end(), after, IsBefore);
  page.gap = first == ring_.begin() && !ring_.empty() && after + 1 < ring_.front().seq && after != 0;
  const auto count = std::min<ptrdiff_t>(static_cast<ptrdiff_t>(limit), ring_.end() - first);
  page.events.assign(first, first + count);
  return page;
}

bool EventJournal::Wait(uint64_t after, std::chrono::milliseconds timeout) const {
  std::unique_lock lock(mutex_);
  const uint64_t wakes = wakes_;
  changed_.wait_for(lock, timeout, [&] { return IsBehind(after) || closing_ || wakes_ != wakes; });
  return IsBehind(after);
}

void EventJournal::Wake() {
  {
    const std::lock_guard lock(mutex_);
    ++wakes_;
  }
  changed_.notify_all();
}

// --- the writing thread ---

bool EventJournal::HasUnwritten() const { return !ring_.empty() && ring_.back().seq > written_; }

void EventJournal::WriteLoop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return closing_ || HasUnwritten(); });
    if (!HasUnwritten()) {
      return;
    }
    const auto first = std::upper_bound(ring_.begin(), ring_.end(), written_, IsBefore);
    const auto last = first + std::min<ptrdiff_t>(kWrittenAtOnce, ring_.end() - first);
    std::string lines;
    for (auto event = first; event != last; ++event) {
      lines += JournalLine(*event);
    }
    const uint64_t newest = (last - 1)->seq;
    const bool last_attempt = closing_;
    lock.unlock();
    std::string why;
    const bool written = WriteLines(lines, why);
    NoteOutcome(written, why);
    lock.lock();
    if (written) {
      written_ = newest;
    } else if (last_attempt) {
      return;
    } else {
      changed_.wait_for(lock, kWritePause, [this, seen = last_] { return closing_ || last_ != seen; });
    }
  }
}

bool EventJournal::WriteLines(const std::string& lines, std::string& why) {
  const std::string path = directory_ + kCurrent;
  if (file_.valid() && file_size_ > 0 && file_size_ + lines.size() > options_.file_bytes / 2 &&
      !Rotate(why)) {
    return false;
  }
  if (!file_.valid()) {
    file_.Reset(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    struct stat attributes {};
    if (!file_.valid() || ::fstat(file_.get(), &attributes) != 0) {
      why = Failure("open", path);
      file_.Reset();
      return false;
    }
    file_size_ = static_cast<uint64_t>(attributes.st_size);
    SyncDirectory(directory_);
  }
  if (!WriteAll(file_.get(), lines) || ::fdatasync(file_.get()) != 0) {
    why = Failure("write", path);
    // What came of it goes again: half a line would spoil the next one.
    if (::ftruncate(file_.get(), static_cast<off_t>(file_size_)) != 0) {
      file_.Reset();
    }
    return false;
  }
  file_size_ += lines.size();
  return true;
}

bool EventJournal::Rotate(std::string& why) {
  const std::string path = directory_ + kCurrent;
  if (::rename(path.c_str(), (directory_ + kOlder).c_str()) != 0) {
    why = Failure("rename", path);
    return false;
  }
  file_.Reset();
  return true;
}

// A failure is one event, and so is its end.
void EventJournal::NoteOutcome(bool written, const std::string& why) {
  if (!written) {
    if (!std::exchange(failing_, true)) {
      Report(LogLevel::kError, "journal_not_written", {{"reason", why}});
    }
  } else if (std::exchange(failing_, false)) {
    uint64_t lost = 0;
    {
      const std::lock_guard lock(mutex_);
      lost = std::exchange(lost_, 0);
    }
    Report(LogLevel::kInfo, "journal_written", {{"lost", std::to_string(lost)}});
  }
}

}  // namespace pmirror::server
