// SPDX-License-Identifier: BSD-3-Clause
// A Replicator without replicas: does the local work, keeps every operation, and can be told to fail.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "fs/replicator.h"

namespace pmirror::fs {

class RecordedFile : public ReplicatedFile {
 public:
  explicit RecordedFile(FileId id) : id_(id) {}
  FileId id() const override { return id_; }

 private:
  const FileId id_;
};

struct RecordedWrite {
  FileId id;
  Extent extent;
  friend bool operator==(const RecordedWrite&, const RecordedWrite&) = default;
};

class RecordingReplicator : public Replicator {
 public:
  int Change(LocalChange local_change) override {
    std::lock_guard lock(mutex_);
    NamespaceOp op;
    const int error = local_change(op);
    if (error != 0) {
      return error;
    }
    ops_.push_back(std::move(op));
    if (after_change_) {
      after_change_();
    }
    return fail_after_change_.load();
  }

  int ChangeSize(ReplicatedFile& file, LocalChange local_change) override {
    return Change([&](NamespaceOp& op) {
      const int error = local_change(op);
      op.generation = error == 0 ? generations_[file.id()] += 2 : 0;
      return error;
    });
  }

  std::shared_ptr<ReplicatedFile> Attach(FileId id, int) override {
    std::lock_guard lock(files_mutex_);
    std::shared_ptr<RecordedFile> file = files_[id].lock();
    if (file == nullptr) {
      file = std::make_shared<RecordedFile>(id);
      files_[id] = file;
    }
    return file;
  }

  int Written(ReplicatedFile& file, Extent extent) override {
    std::function<int()> wait;
    {
      std::lock_guard lock(files_mutex_);
      writes_.push_back({file.id(), extent});
      wait = wait_;
    }
    const int error = wait ? wait() : 0;
    return error != 0 ? error : fail_after_change_.load();
  }

  int Sync(ReplicatedFile& file, bool, LocalSync local_sync) override {
    {
      std::lock_guard lock(files_mutex_);
      syncs_.push_back(file.id());
    }
    return local_sync();
  }
  int SyncTree(LocalSync local_sync) override {
    ++tree_syncs_;
    return local_sync();
  }
  int SyncVolume(LocalSync local_sync) override { return local_sync(); }

  FileId NewId() override { return FileId{next_id_.fetch_add(1)}; }

  void Adopted(FileId, const char* name, FileId) override {
    std::lock_guard lock(files_mutex_);
    adopted_.emplace_back(name);
  }

  // --- for tests ---
  // Every change and write from now on answers this after its local work; 0: none.
  void FailAfterChange(int error) { fail_after_change_ = error; }

  // Every write from now on ends with what this answers, on its own thread.
  void WaitInWritten(std::function<int()> wait) {
    std::lock_guard lock(files_mutex_);
    wait_ = std::move(wait);
  }

  // Runs after every change from now on, before its caller goes on.
  void AfterChange(std::function<void()> hook) {
    std::lock_guard lock(mutex_);
    after_change_ = std::move(hook);
  }

  // What was recorded since the last call.
  std::vector<NamespaceOp> TakeOps() {
    std::lock_guard lock(mutex_);
    return std::exchange(ops_, {});
  }
  std::vector<RecordedWrite> TakeWrites() {
    std::lock_guard lock(files_mutex_);
    return std::exchange(writes_, {});
  }
  std::vector<FileId> TakeSyncs() {
    std::lock_guard lock(files_mutex_);
    return std::exchange(syncs_, {});
  }
  std::vector<std::string> TakeAdopted() {
    std::lock_guard lock(files_mutex_);
    return std::exchange(adopted_, {});
  }
  int tree_syncs() const { return tree_syncs_; }

 private:
  std::mutex mutex_;  // the namespace lock
  std::vector<NamespaceOp> ops_;
  std::map<FileId, uint64_t> generations_;
  std::function<void()> after_change_;

  std::mutex files_mutex_;
  std::map<FileId, std::weak_ptr<RecordedFile>> files_;
  std::vector<RecordedWrite> writes_;
  std::vector<FileId> syncs_;
  std::vector<std::string> adopted_;
  std::function<int()> wait_;

  std::atomic<uint64_t> next_id_{(uint64_t{1} << 40) + 1};
  std::atomic<int> fail_after_change_{0};
  std::atomic<int> tree_syncs_{0};
};

}  // namespace pmirror::fs
