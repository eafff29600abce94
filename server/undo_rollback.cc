// SPDX-License-Identifier: BSD-3-Clause
// See undo_rollback.h.
#include "server/undo_rollback.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "recovery/inventory.h"
#include "recovery/tree_plan.h"
#include "server/backing_index.h"
#include "server/file_table.h"
#include "server/namespace_applier.h"
#include "server/persistence.h"
#include "server/undo_log.h"
#include "server/undo_log_file.h"

namespace pmirror::server {
namespace {

using recovery::Inventory;

// A plan moves times only where it knows that they moved. What its own directories do to each other is seen in the next round.
constexpr int kMostRounds = 4;

absl::Status ReadAll(const std::string& backing, recovery::LogStorage& storage, UndoContents& contents,
                     uint64_t& id, absl::FunctionRef<absl::Status(const UndoBytes&)> on_bytes) {
  const std::string path = UndoLogPath(backing);
  const absl::StatusOr<uint64_t> read =
      UndoLogFile::Read(storage, path, [&](uint32_t kind, std::span<const std::byte> payload) {
        return contents.Add(kind, payload, on_bytes);
      });
  if (!read.ok()) {
    return read.status();
  }
  id = *read;
  return contents.complete()
             ? absl::OkStatus()
             : absl::DataLossError(absl::StrCat("undo log ", path, " is damaged: it has no tree"));
}

// One way back. The order: objects that took the id of one that was removed go (ids are not used twice, but a copy may come from
// anywhere); the kept ones come back among the orphans; the tree; the bytes; then what the bytes did to attributes.
class WayBack {
 public:
  WayBack(const std::string& backing, recovery::LogStorage& storage,
          absl::FunctionRef<absl::Status()> before_step)
      : backing_(backing), storage_(storage), before_step_(before_step) {}

  absl::StatusOr<RolledBack> Go() {
    uint64_t id = 0;
    absl::Status status =
        ReadAll(backing_, storage_, contents_, id, [](const UndoBytes&) { return absl::OkStatus(); });
    if (status.ok()) {
      status = Open();
    }
    if (status.ok()) {
      status = BringBackKept();
    }
    if (status.ok()) {
      status = BringBackTree();
    }
    if (status.ok()) {
      status = BringBackBytes();
    }
    for (int round = 0; status.ok() && round < kMostRounds && !equal_; ++round) {
      status = BringBackTree();
    }
    if (status.ok() && !equal_) {
      status = absl::InternalError(absl::StrCat("the tree of ", backing_, " does not become what it was"));
    }
    if (status.ok()) {
      status = Finish();
    }
    result_.point = contents_.point;
    return status.ok() ? absl::StatusOr<RolledBack>(result_) : status;
  }

 private:
  absl::Status Open() {
    absl::StatusOr<std::unique_ptr<BackingIndex>> index = BackingIndex::Build(backing_);
    if (!index.ok()) {
      return index.status();
    }
    index_ = *std::move(index);
    domain_ = PersistenceDomain::Create(Domain::kFile, index_->root());
    files_ = std::make_unique<FileTable>(*index_, *domain_);
    applier_ = std::make_unique<NamespaceApplier>(*index_, *files_, *domain_);
    absl::StatusOr<UniqueFd> kept = OpenKept(index_->own_directory(), backing_);
    if (!kept.ok()) {
      return kept.status();
    }
    kept_ = *std::move(kept);
    return absl::OkStatus();
  }

  absl::Status BecomeTree(const Inventory& wanted) {
    const absl::StatusOr<Inventory> have =
        recovery::TakeInventory(index_->root(), recovery::InventoryDetail::kFull);
    if (!have.ok()) {
      return have.status();
    }
    const recovery::TreePlan plan = recovery::PlanTree(wanted, *have);
    if (!plan.obstacles.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("object ", plan.obstacles.front().path, " of ", backing_,
                       " carries no id of its own and is in the way; move it away and try again"));
    }
    equal_ = plan.operations.empty();
    for (const NamespaceOp& op : plan.operations) {
      if (absl::Status status = before_step_(); !status.ok()) {
        return status;
      }
      if (const Outcome outcome = applier_->Apply(op, 0).outcome; outcome) {
        return absl::ErrnoToStatus(
            outcome->error_number != 0 ? outcome->error_number : EIO,
            absl::StrCat("take back ", backing_, ": ", Name(op.kind), " of object ", Raw(op.target),
                         " named \"", op.name, "\" in ", Raw(op.parent)));
      }
      ++result_.operations;
    }
    return absl::OkStatus();
  }

  absl::Status BringBackTree() { return BecomeTree(contents_.tree); }

  absl::StatusOr<std::vector<std::string>> KeptNames() const {
    UniqueFd fd(::openat(kept_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIR* const stream = fd.valid() ? ::fdopendir(fd.get()) : nullptr;
    if (stream == nullptr) {
      return absl::ErrnoToStatus(errno, absl::StrCat("read ", backing_, "/.pmirror/undo/kept"));
    }
    fd.Release();  // owned by the stream now
    std::vector<std::string> names;
    while (const dirent* const entry = ::readdir(stream)) {
      if (entry->d_name[0] != '.') {
        names.emplace_back(entry->d_name);
      }
    }
    ::closedir(stream);
    return names;
  }

  absl::Status BringBackKept() {
    const absl::StatusOr<std::vector<std::string>> names = KeptNames();
    if (!names.ok() || names->empty()) {
      return names.status();
    }
    std::unordered_set<uint64_t> ids;
    for (const std::string& name : *names) {
      const Result<FileId> id = index_->IdOfEntry(kept_.get(), name.c_str());
      if (!id.ok() || OrphanName(id.value()) != name) {
        return absl::DataLossError(
            absl::StrCat(backing_, "/.pmirror/undo/kept/", name, " is not what its name says"));
      }
      ids.insert(Raw(id.value()));
    }
    Inventory without;
    for (const recovery::TreeItem& item : contents_.tree) {
      if (!ids.contains(Raw(item.id))) {
        without.push_back(item);
      }
    }
    if (absl::Status status = BecomeTree(without); !status.ok()) {
      return status;
    }
    for (const std::string& name : *names) {
      if (absl::Status status = before_step_(); !status.ok()) {
        return status;
      }
      if (absl::Status status = Adopt(name); !status.ok()) {
        return status;
      }
    }
    return absl::OkStatus();
  }

  absl::Status Adopt(const std::string& name) {
    const Result<FileId> id = index_->IdOfEntry(kept_.get(), name.c_str());
    int error = id.ok() ? 0 : id.error().code;
    if (error == 0 && ::renameat(kept_.get(), name.c_str(), index_->orphans(), name.c_str()) != 0) {
      error = errno;
    }
    if (error == 0 && ::unlinkat(kept_.get(), name.c_str(), 0) != 0 && errno != ENOENT) {
      error = errno;  // there, when both were names of one object
    }
    if (error == 0) {
      error = index_->Insert(id.value(), index_->orphans(), name.c_str());
    }
    ++result_.brought_back;
    return error == 0 ? absl::OkStatus()
                      : absl::ErrnoToStatus(
                            error, absl::StrCat("bring back ", backing_, "/.pmirror/undo/kept/", name));
  }

  absl::Status BringBackBytes() {
    UndoContents again;
    uint64_t id = 0;
    equal_ = false;
    return ReadAll(backing_, storage_, again, id, [this](const UndoBytes& bytes) {
      if (absl::Status status = before_step_(); !status.ok()) {
        return status;
      }
      const int error = Store(bytes);
      return error == 0 ? absl::OkStatus()
                        : absl::ErrnoToStatus(error, absl::StrCat("bring back bytes of object ",
                                                                  Raw(bytes.file), " in ", backing_));
    });
  }

  int Store(const UndoBytes& bytes) {
    const Result<UniqueFd> file = index_->Open(bytes.file, O_RDWR | O_NOFOLLOW);
    if (!file.ok()) {
      return file.error().code;
    }
    const int fd = file.value().get();
    const auto offset = static_cast<off_t>(bytes.extent.offset);
    result_.bytes += bytes.extent.length;
    if (bytes.hole) {
      return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
                         static_cast<off_t>(bytes.extent.length)) == 0
                 ? 0
                 : errno;
    }
    for (size_t done = 0; done < bytes.bytes.size();) {
      const ssize_t written = ::pwrite(fd, bytes.bytes.data() + done, bytes.bytes.size() - done,
                                       offset + static_cast<off_t>(done));
      if (written <= 0 && !(written < 0 && errno == EINTR)) {
        return written == 0 ? EIO : errno;
      }
      done += written > 0 ? static_cast<size_t>(written) : 0;
    }
    return 0;
  }

  // The mark of operations is of the mount that the resync adopted, perhaps.
  absl::Status Finish() {
    const recovery::VolumeRecord& record = contents_.point.record;
    const std::array<uint64_t, 2> mark = {record.mount_number, record.operation};
    if (::fsetxattr(index_->own_directory(), kOperationXattr, mark.data(), sizeof mark, 0) != 0 ||
        ::syncfs(index_->root()) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("make durable ", backing_));
    }
    return absl::OkStatus();
  }

  const std::string& backing_;
  recovery::LogStorage& storage_;
  const absl::FunctionRef<absl::Status()> before_step_;
  UndoContents contents_;
  RolledBack result_;
  bool equal_ = false;  // the last plan was empty
  std::unique_ptr<BackingIndex> index_;
  std::unique_ptr<PersistenceDomain> domain_;
  std::unique_ptr<FileTable> files_;
  std::unique_ptr<NamespaceApplier> applier_;
  UniqueFd kept_;
};

}  // namespace

absl::StatusOr<UndoPoint> ReadUndoLog(const std::string& backing, uint64_t& id,
                                      recovery::LogStorage& storage) {
  UndoContents contents;
  absl::Status status =
      ReadAll(backing, storage, contents, id, [](const UndoBytes&) { return absl::OkStatus(); });
  return status.ok() ? absl::StatusOr<UndoPoint>(std::move(contents.point)) : status;
}

absl::StatusOr<RolledBack> RollBack(const std::string& backing, recovery::LogStorage& storage,
                                    absl::FunctionRef<absl::Status()> before_step) {
  return WayBack(backing, storage, before_step).Go();
}

}  // namespace pmirror::server
