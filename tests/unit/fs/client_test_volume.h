// SPDX-License-Identifier: BSD-3-Clause
// A mounted volume as the registry of programs sees it, without replicas: it records what it is told. Needs root and /dev/fuse.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "fs/client_volume.h"
#include "fs/extent_set.h"
#include "fs/shared_object.h"
#include "fs/volume_page_owner.h"
#include "replication/order_page.h"
#include "tests/unit/fs/mounted_volume.h"

namespace pmirror::fs {

class TestVolume : public ClientVolume {
 public:
  struct Granted {
    size_t replica;
    SessionId session;
    FileId file;
    friend bool operator==(const Granted&, const Granted&) = default;
  };

  TestVolume(std::string name, const OpenOracle& oracle) : name_(std::move(name)) {
    uuid_.fill(std::byte{static_cast<uint8_t>(name_.back())});
    EXPECT_EQ(::mkdir(backing().c_str(), 0755), 0);
    EXPECT_EQ(::mkdir(mount().c_str(), 0755), 0);
    root_ = std::move(BackingRoot::Open(backing()).value());
    file_system_ = std::make_unique<FileSystem>(*root_, replicator_, oracle, 1 << 16);
    session_ = std::move(
        FuseSession::Mount(*file_system_, *root_, {.mount_point = mount(), .socket = "/run/test"}).value());
    mount_device_ = StatusOf(mount()).st_dev;
    page_ = std::move(VolumePageOwner::Create({.epoch = Epoch{1},
                                               .on_loss = OnLoss::kFail,
                                               .replica_count = 1,
                                               .deadline_ns = 10'000'000'000,
                                               .domain = Domain::kVolatile,
                                               .tracking = Tracking::kWritten})
                          .value());
    page_->SetMembers(1, 0);
    page_->SetState(VolumeState::kServing);
    order_.emplace(SharedObject<OrderPage>::Create("order", Receivers::kReadWrite).value());
  }
  ~TestVolume() override {
    EXPECT_TRUE(session_->Unmount(Deadline::After(std::chrono::seconds(10))))
        << "somebody still uses the mount";
  }

  std::string backing() const { return scratch_.path() + "/backing"; }
  std::string mount() const { return scratch_.path() + "/mount"; }
  std::string At(const std::string& file) const { return mount() + "/" + file; }
  static struct stat StatusOf(const std::string& path) {
    struct stat info {};
    EXPECT_EQ(::stat(path.c_str(), &info), 0) << path;
    return info;
  }
  FileId IdOf(const std::string& file) const { return FileId{StatusOf(At(file)).st_ino}; }
  FileId MakeFile(const std::string& file, size_t pages) const {
    const UniqueFd fd(::open(At(file).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    EXPECT_TRUE(fd.valid());
    const std::vector<char> bytes(pages * kPageSize, '.');
    EXPECT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    return IdOf(file);
  }
  // From here on programs have a replica: number 0 is `replica`, and files have slots.
  void Attach(Connector& replica) { replica_ = &replica; }
  VolumePageOwner& page() { return *page_; }
  bool IsDirect(FileId id) const {
    const std::shared_ptr<Inode> inode = file_system_->inodes().Find(id);
    return inode != nullptr && inode->direct();
  }

  // --- ClientVolume ---
  const std::string& name() const override { return name_; }
  const Uuid& uuid() const override { return uuid_; }
  dev_t mount_device() const override { return mount_device_; }
  dev_t backing_device() const override { return root_->device(); }
  int page_fd() const override { return page_->fd(); }
  void Listen(PageListener& listener) override { page_->Listen(listener); }
  void StopListening(PageListener& listener) override { page_->StopListening(listener); }
  size_t replica_count() const override { return 2; }
  FileSystem& file_system() override { return *file_system_; }
  void UseForeignStores(ForeignStores&) override {}
  SharedParts PartsOf(const ReplicatedFile& file) const override {
    std::lock_guard lock(mutex_);
    const auto [at, fresh] = slots_.try_emplace(file.id(), 7);
    if (fresh && replica_ != nullptr) {
      at->second = page_->TakeSlot(file.id(), 0, 0).value();
    }
    return {.slot = at->second, .order_fd = order_->fd()};
  }

  Result<Connector::Connection> OpenSession(size_t, const std::string&, SessionId session,
                                            Sequence next_sequence, Deadline deadline) override {
    if (replica_ != nullptr) {
      return replica_->Connect(session, next_sequence, deadline);
    }
    std::lock_guard lock(mutex_);
    if (open_session_error != 0) {
      return Error{open_session_error, "open a session"};
    }
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    peers.emplace_back(ends[1]);
    Connector::Connection connection;
    connection.socket.Reset(ends[0]);
    connection.session = session == SessionId{} ? SessionId{++last_session_} : session;
    connection.resumed.received_sequence = next_sequence;
    connection.resumed.credit_limit = 99;
    return connection;
  }
  int Grant(size_t replica, SessionId session, FileId file, Deadline) override {
    std::lock_guard lock(mutex_);
    granted.push_back({replica, session, file});
    return grant_error;
  }
  absl::StatusOr<CaptureLogParts> OpenCaptureLog(ProcessSerial) override {
    return absl::NotFoundError("no replica trails");
  }
  void CloseCaptureLog(ProcessSerial) override {}
  void EndSession(size_t, SessionId session) override {
    std::lock_guard lock(mutex_);
    ended.push_back(session);
    changed_.notify_all();
  }
  void SetWritingMappers(ReplicatedFile& file, size_t processes) override {
    std::lock_guard lock(mutex_);
    writing_mappers[file.id()] = processes;
    changed_.notify_all();
  }
  void HoldDirty(const std::shared_ptr<ReplicatedFile>& file, std::span<const Extent> extents) override {
    std::function<void(FileId)> call;
    {
      std::lock_guard lock(mutex_);
      call = on_hold;
    }
    if (call) {
      call(file->id());
    }
    std::lock_guard lock(mutex_);
    for (const Extent& extent : extents) {
      held[file->id()].Add(extent);
    }
    changed_.notify_all();
  }
  void HoldDoubtful(const std::shared_ptr<ReplicatedFile>& file, Extent extent) override {
    HoldDirty(file, {&extent, 1});
  }
  int SyncOthers(const std::shared_ptr<ReplicatedFile>& file, Extent range, ProcessSerial asking,
                 Deadline deadline) override {
    std::unique_lock lock(mutex_);
    synced.emplace_back(file->id(), range);
    last_asking = asking;
    changed_.notify_all();
    changed_.wait_for(lock, deadline.Remaining(), [&] { return !hold_syncs; });
    return sync_error;
  }
  int SyncAll(ProcessSerial asking, Deadline) override {
    std::lock_guard lock(mutex_);
    last_asking = asking;
    ++volume_syncs;
    return sync_error;
  }
  void Report(pid_t pid, local::ReportKind kind, FileId file, uint64_t value) override {
    std::lock_guard lock(mutex_);
    last_report = {pid, kind, file, value};
    ++reports[kind];
    changed_.notify_all();
  }

  // --- for tests: what was told, under the lock that `with` gets ---
  template <typename With>
  auto Locked(With&& with) {
    std::lock_guard lock(mutex_);
    return with();
  }
  // False after 20 s.
  bool WaitFor(const std::function<bool()>& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), condition);
  }
  std::vector<Extent> Held(FileId id) {
    return Locked([&] { return held[id].extents(); });
  }
  size_t WritingMappersOf(FileId id) {
    return Locked([&] { return writing_mappers[id]; });
  }
  std::vector<Granted> TakeGranted() {
    return Locked([&] { return std::exchange(granted, {}); });
  }
  void ReleaseSyncs() {
    Locked([&] { hold_syncs = false; });
    changed_.notify_all();
  }

  struct ReportLine {
    pid_t pid = 0;
    local::ReportKind kind{};
    FileId file{};
    uint64_t value = 0;
  };

  std::map<FileId, ExtentSet> held;
  std::map<FileId, size_t> writing_mappers;
  std::vector<Granted> granted;
  std::vector<SessionId> ended;
  std::vector<UniqueFd> peers;  // the replica's end of each session
  std::vector<std::pair<FileId, Extent>> synced;
  ProcessSerial last_asking{};
  int volume_syncs = 0;
  ReportLine last_report;
  std::map<local::ReportKind, int> reports;
  int open_session_error = 0;
  int grant_error = 0;
  int sync_error = 0;
  bool hold_syncs = false;
  std::function<void(FileId)> on_hold;  // called without a lock

 private:
  const std::string name_;
  Uuid uuid_{};
  ScratchDirectory scratch_;
  RecordingReplicator replicator_;
  std::unique_ptr<BackingRoot> root_;
  std::unique_ptr<FileSystem> file_system_;
  std::unique_ptr<FuseSession> session_;
  dev_t mount_device_ = 0;
  std::unique_ptr<VolumePageOwner> page_;
  std::optional<SharedObject<OrderPage>> order_;

  Connector* replica_ = nullptr;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  mutable std::map<FileId, uint32_t> slots_;
  uint64_t last_session_ = 100;
};

}  // namespace pmirror::fs
