// SPDX-License-Identifier: BSD-3-Clause
// Takes what is about to change. See undo_log.h.
#include "server/undo_log.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "recovery/inventory.h"
#include "spdlog/spdlog.h"

namespace pmirror::server {
namespace {

constexpr char kUndoDirectory[] = "undo";
constexpr char kKeptDirectory[] = "kept";
constexpr uint64_t kMostAtOnce = uint64_t{4} << 20;  // bytes of one append

absl::Status Failed(const std::string& what) { return absl::ErrnoToStatus(errno, what); }

// Why there is no log, in words that tell want of room from other failures.
std::string Reason(const absl::Status& status) {
  constexpr char kNoRoom[] = "no room for an undo log";
  const std::string message(status.message());
  return absl::IsResourceExhausted(status) && !absl::StartsWith(message, kNoRoom)
             ? absl::StrCat(kNoRoom, ": ", message)
             : message;
}

// Removes every name in `directory`.
absl::Status Empty(int directory, const std::string& path) {
  UniqueFd fd(::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  DIR* const stream = fd.valid() ? ::fdopendir(fd.get()) : nullptr;
  if (stream == nullptr) {
    return Failed(absl::StrCat("read ", path));
  }
  fd.Release();  // owned by the stream now
  absl::Status status;
  while (const dirent* const entry = ::readdir(stream)) {
    if (entry->d_name[0] != '.' && ::unlinkat(directory, entry->d_name, 0) != 0 && errno != ENOENT) {
      status = Failed(absl::StrCat("remove ", path, "/", entry->d_name));
    }
  }
  ::closedir(stream);
  return status;
}

// What a resync can reach: without objects that carry no id, and what is below them.
recovery::Inventory WithIds(recovery::Inventory tree) {
  recovery::Inventory reachable;
  std::string hidden;  // the directory whose content is left out, with a slash
  for (recovery::TreeItem& item : tree) {
    if (!hidden.empty() && absl::StartsWith(item.path, hidden)) {
      continue;
    }
    hidden.clear();
    if (item.id == FileId::kNone && !item.path.empty()) {
      hidden = item.path + "/";
      continue;
    }
    if (item.orphan) {
      if (!S_ISREG(item.mode)) {
        continue;  // parked by a resync that was cut
      }
      item.path.clear();  // as the original of a plan has them
    } else if (absl::StartsWith(item.path, recovery::kOrphansPath)) {
      continue;
    }
    reachable.push_back(std::move(item));
  }
  return reachable;
}

Extent Pages(uint64_t begin, uint64_t end) {
  begin = begin / kPageSize * kPageSize;
  return {begin, end - begin + (end % kPageSize != 0 ? kPageSize - end % kPageSize : 0)};
}

// The next run of [begin, end) that is all hole or all data. File systems that cannot tell say data.
std::pair<uint64_t, bool> NextRun(int fd, uint64_t begin, uint64_t end) {
  const off_t data = ::lseek(fd, static_cast<off_t>(begin), SEEK_DATA);
  if (data < 0) {
    return {end, errno == ENXIO};
  }
  if (static_cast<uint64_t>(data) > begin) {
    return {std::min(end, static_cast<uint64_t>(data)), true};
  }
  const off_t hole = ::lseek(fd, static_cast<off_t>(begin), SEEK_HOLE);
  return {hole < 0 ? end : std::min(end, static_cast<uint64_t>(hole)), false};
}

}  // namespace

std::string UndoLogPath(const std::string& backing) {
  return absl::StrCat(backing, "/", recovery::kOwnDirectory, "/", kUndoDirectory, "/log");
}

absl::StatusOr<UniqueFd> OpenKept(int own_directory, const std::string& backing) {
  if (::mkdirat(own_directory, kUndoDirectory, 0700) != 0 && errno != EEXIST) {
    return Failed(absl::StrCat("make ", backing, "/.pmirror/undo"));
  }
  const std::string kept = absl::StrCat(kUndoDirectory, "/", kKeptDirectory);
  if (::mkdirat(own_directory, kept.c_str(), 0700) != 0 && errno != EEXIST) {
    return Failed(absl::StrCat("make ", backing, "/.pmirror/", kept));
  }
  UniqueFd fd(::openat(own_directory, kept.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  return fd.valid() ? absl::StatusOr<UniqueFd>(std::move(fd))
                    : Failed(absl::StrCat("open ", backing, "/.pmirror/", kept));
}

absl::Status RemoveUndoLog(int own_directory, const std::string& backing, recovery::LogStorage& storage) {
  struct stat info {};
  if (::fstatat(own_directory, kUndoDirectory, &info, AT_SYMLINK_NOFOLLOW) != 0) {
    return errno == ENOENT ? absl::OkStatus() : Failed(absl::StrCat("look at ", backing, "/.pmirror/undo"));
  }
  const std::string path = UndoLogPath(backing);
  absl::Status status = storage.Remove(path);
  if (status.ok()) {
    status = storage.Remove(path + ".new");
  }
  if (status.ok()) {
    status = storage.SyncDirectory(path);  // before anything that the log would lead to
  }
  if (!status.ok()) {
    return status;
  }
  const absl::StatusOr<UniqueFd> kept = OpenKept(own_directory, backing);
  return kept.ok() ? Empty(kept->get(), absl::StrCat(backing, "/.pmirror/undo/kept")) : kept.status();
}

absl::Status UndoLog::Begin(const UndoPoint& point, uint64_t id) {
  const std::unique_lock use(use_mutex_);
  const absl::Status status = Make(point, id);
  return status.ok() ? status : absl::Status(status.code(), Reason(status));
}

absl::Status UndoLog::Make(const UndoPoint& point, uint64_t id) {
  if (absl::Status status = RemoveUndoLog(index_.own_directory(), options_.backing, *options_.storage);
      !status.ok()) {
    return status;
  }
  absl::StatusOr<UniqueFd> kept = OpenKept(index_.own_directory(), options_.backing);
  if (!kept.ok()) {
    return kept.status();
  }
  kept_ = *std::move(kept);
  if (::fsync(index_.own_directory()) != 0) {
    return Failed(absl::StrCat("make durable ", options_.backing, "/.pmirror"));
  }
  absl::StatusOr<recovery::Inventory> walked =
      recovery::TakeInventory(index_.root(), recovery::InventoryDetail::kFull);
  if (!walked.ok()) {
    return walked.status();
  }
  const recovery::Inventory tree = WithIds(*std::move(walked));
  absl::Status status = CheckRoom(0);
  if (!status.ok() || !(status = Write(point, id, tree)).ok()) {
    log_.reset();
    return status;
  }
  Remember(tree);
  point_ = point;
  active_.store(true, std::memory_order_release);
  return absl::OkStatus();
}

absl::Status UndoLog::Write(const UndoPoint& point, uint64_t id, const recovery::Inventory& tree) {
  absl::StatusOr<std::unique_ptr<UndoLogFile>> log =
      UndoLogFile::Create(*options_.storage, UndoLogPath(options_.backing), id);
  if (!log.ok()) {
    return log.status();
  }
  log_ = *std::move(log);
  absl::Status status = log_->Write(static_cast<uint32_t>(UndoKind::kPoint), EncodePoint(point));
  for (auto item = tree.begin(); item != tree.end() && status.ok(); ++item) {
    status = log_->Write(static_cast<uint32_t>(UndoKind::kItem), EncodeItem(*item));
  }
  if (status.ok()) {
    status = log_->Write(static_cast<uint32_t>(UndoKind::kTreeEnd), EncodeTreeEnd(tree.size()));
  }
  return status.ok() ? log_->Publish() : status;
}

absl::Status UndoLog::Continue(uint64_t id) {
  const std::unique_lock use(use_mutex_);
  absl::StatusOr<UniqueFd> kept = OpenKept(index_.own_directory(), options_.backing);
  if (!kept.ok()) {
    return kept.status();
  }
  kept_ = *std::move(kept);
  UndoContents contents;
  std::vector<std::pair<uint64_t, Extent>> saved;
  absl::StatusOr<std::unique_ptr<UndoLogFile>> log =
      UndoLogFile::Open(*options_.storage, UndoLogPath(options_.backing),
                        [&](uint32_t kind, std::span<const std::byte> payload) {
                          return contents.Add(kind, payload, [&](const UndoBytes& bytes) {
                            saved.emplace_back(Raw(bytes.file), bytes.extent);
                            return absl::OkStatus();
                          });
                        });
  if (!log.ok()) {
    return log.status();
  }
  if ((*log)->id() != id || !contents.complete()) {
    return absl::NotFoundError(
        absl::StrCat("the undo log ", UndoLogPath(options_.backing), " is not that of this resync"));
  }
  Remember(contents.tree);
  for (const auto& [file, extent] : saved) {
    if (const auto at = files_.find(file); at != files_.end()) {
      at->second->saved.Add(extent.offset, extent.end());
    }
  }
  if (absl::Status status = LoadKept(); !status.ok()) {
    return status;
  }
  log_ = *std::move(log);
  point_ = std::move(contents.point);
  active_.store(true, std::memory_order_release);
  return absl::OkStatus();
}

void UndoLog::Remember(const recovery::Inventory& tree) {
  const std::lock_guard lock(mutex_);
  files_.clear();
  reason_.clear();
  for (const recovery::TreeItem& item : tree) {
    if (S_ISREG(item.mode)) {
      std::shared_ptr<File>& file = files_[Raw(item.id)];
      if (file == nullptr) {
        file = std::make_shared<File>();
        file->size = item.size;
      }
    }
  }
}

absl::Status UndoLog::LoadKept() {
  UniqueFd fd(::openat(kept_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  DIR* const stream = fd.valid() ? ::fdopendir(fd.get()) : nullptr;
  if (stream == nullptr) {
    return Failed(absl::StrCat("read ", options_.backing, "/.pmirror/undo/kept"));
  }
  fd.Release();  // owned by the stream now
  const std::lock_guard lock(mutex_);
  while (const dirent* const entry = ::readdir(stream)) {
    struct stat info {};
    if (entry->d_name[0] == '.' || ::fstatat(kept_.get(), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
      continue;
    }
    if (info.st_nlink == 1) {  // else the crash came before it lost its name: that is still to come
      if (const Result<FileId> id = index_.IdOfEntry(kept_.get(), entry->d_name); id.ok()) {
        files_.erase(Raw(id.value()));
      }
    }
  }
  ::closedir(stream);
  return absl::OkStatus();
}

absl::Status UndoLog::End() {
  const std::unique_lock use(use_mutex_);
  active_.store(false, std::memory_order_release);
  log_.reset();
  {
    const std::lock_guard lock(mutex_);
    files_.clear();
    reason_.clear();
  }
  return RemoveUndoLog(index_.own_directory(), options_.backing, *options_.storage);
}

void UndoLog::GiveUpWithout(const std::string& why) {
  spdlog::warn("event=undo_log_given_up volume={} backing={} reason=\"{}\"", options_.volume,
               options_.backing, why);
  const std::lock_guard lock(mutex_);
  reason_ = why;
}

uint64_t UndoLog::id() const {
  const std::shared_lock use(use_mutex_);
  return active() ? log_->id() : 0;
}

std::optional<UndoPoint> UndoLog::point() const {
  const std::shared_lock use(use_mutex_);
  return active() ? std::optional(point_) : std::nullopt;
}

std::string UndoLog::reason() const {
  const std::lock_guard lock(mutex_);
  return reason_;
}

std::shared_ptr<UndoLog::File> UndoLog::Find(FileId id) const {
  const std::lock_guard lock(mutex_);
  const auto at = files_.find(Raw(id));
  return at == files_.end() ? nullptr : at->second;
}

int UndoLog::BeforeWrite(const BackingFile& file, std::span<const ApplyPiece> pieces) {
  if (!active()) {
    return 0;
  }
  std::vector<Extent> ranges;
  for (const ApplyPiece& piece : pieces) {
    ranges.push_back(Pages(piece.offset, piece.offset + piece.length));
  }
  return SaveOrGiveUp(file, ranges);
}

int UndoLog::BeforeSizeChange(const BackingFile& file, const NamespaceOp& op) {
  if (!active()) {
    return 0;
  }
  Extent range;
  if (op.kind == OpKind::kTruncate) {
    range = Pages(op.extent.offset, std::max(op.extent.offset, file.size));
  } else if ((op.flags & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0) {
    range = Pages(op.extent.offset, op.extent.end());
  }
  return SaveOrGiveUp(file, {&range, 1});
}

int UndoLog::SaveOrGiveUp(const BackingFile& file, std::span<const Extent> ranges) {
  const std::shared_lock use(use_mutex_);
  if (!active()) {
    return 0;
  }
  const absl::Status status = Save(file, ranges);
  return status.ok() ? 0 : GiveUp(Reason(status));
}

absl::Status UndoLog::Save(const BackingFile& file, std::span<const Extent> ranges) {
  const std::shared_ptr<File> then = Find(file.id);
  if (then == nullptr) {
    return absl::OkStatus();  // it was not there
  }
  std::vector<std::pair<uint64_t, uint64_t>> missing;
  uint64_t bytes = 0;
  for (const Extent& range : ranges) {
    for (const auto& [begin, end] :
         then->saved.Missing(range.offset, std::min({range.end(), file.size, then->size}))) {
      missing.emplace_back(begin, end);
      bytes += end - begin;
    }
  }
  if (missing.empty()) {
    return absl::OkStatus();
  }
  if (absl::Status status = CheckRoom(bytes); !status.ok()) {
    return status;
  }
  const int fd = file.fd->get();
  std::vector<std::byte> records;
  std::string old;
  for (const auto& [begin, end] : missing) {
    for (uint64_t at = begin; at < end;) {
      auto [run_end, hole] = NextRun(fd, at, end);
      run_end = hole ? run_end : std::min(run_end, at + kMostAtOnce);
      old.resize(hole ? 0 : run_end - at);
      for (size_t have = 0; have < old.size();) {
        const ssize_t got = ::pread(fd, old.data() + have, old.size() - have, static_cast<off_t>(at + have));
        if (got < 0 && errno == EINTR) {
          continue;
        }
        if (got <= 0) {
          return absl::ErrnoToStatus(got == 0 ? EIO : errno,
                                     absl::StrCat("read the old bytes of object ", Raw(file.id)));
        }
        have += static_cast<size_t>(got);
      }
      UndoLogFile::AddRecord(records, static_cast<uint32_t>(UndoKind::kBytes),
                             EncodeBytesHead(file.id, {at, run_end - at}, hole),
                             std::as_bytes(std::span(old)));
      at = run_end;
      if (records.size() >= kMostAtOnce || (at == end && end == missing.back().second)) {
        if (absl::Status status = log_->Append(records); !status.ok()) {
          return status;
        }
        records.clear();
      }
    }
  }
  for (const auto& [begin, end] : missing) {
    then->saved.Add(begin, end);
  }
  return absl::OkStatus();
}

absl::Status UndoLog::CheckRoom(uint64_t bytes) const {
  struct statvfs room {};
  if (::fstatvfs(index_.own_directory(), &room) != 0) {
    return Failed(absl::StrCat("ask for the room of ", options_.backing));
  }
  const uint64_t free = static_cast<uint64_t>(room.f_bavail) * room.f_frsize;
  const uint64_t reserve = static_cast<uint64_t>(room.f_blocks) * room.f_frsize / 100 * options_.reserve;
  return free >= reserve && free - reserve >= bytes
             ? absl::OkStatus()
             : absl::ResourceExhaustedError(absl::StrCat("no room for an undo log: ", free,
                                                         " bytes are free, ", bytes,
                                                         " are needed beside a reserve of ", reserve));
}

int UndoLog::BeforeLoss(int directory, const char* name, FileId id) {
  const std::shared_lock use(use_mutex_);
  if (!active() || Find(id) == nullptr) {
    return 0;
  }
  if (::linkat(directory, name, kept_.get(), OrphanName(id).c_str(), 0) != 0 && errno != EEXIST) {
    return GiveUp(Reason(Failed(absl::StrCat("keep object ", Raw(id)))));
  }
  return 0;
}

void UndoLog::Lost(FileId id) {
  const std::lock_guard lock(mutex_);
  files_.erase(Raw(id));
}

bool UndoLog::Keeps(FileId id, uint64_t inode) const {
  const std::shared_lock use(use_mutex_);
  struct stat info {};
  return active() && ::fstatat(kept_.get(), OrphanName(id).c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0 &&
         info.st_ino == inode;
}

int UndoLog::MakeRoom(bool& made) {
  const std::shared_lock use(use_mutex_);
  made = active();
  return made ? GiveUp("no room for an undo log: the disk is full") : 0;
}

// Under use_mutex_, shared: who has appended meanwhile has appended to a log that nobody will find, or to one that is still there.
int UndoLog::GiveUp(const std::string& why) {
  const std::lock_guard give_up(give_up_mutex_);
  if (!active()) {
    return 0;
  }
  if (absl::Status status = RemoveUndoLog(index_.own_directory(), options_.backing, *options_.storage);
      !status.ok()) {
    spdlog::error("event=undo_log_not_removed volume={} backing={} reason=\"{}\"", options_.volume,
                  options_.backing, std::string(status.message()));
    return EIO;
  }
  active_.store(false, std::memory_order_release);
  GiveUpWithout(why);
  return 0;
}

}  // namespace pmirror::server
