// SPDX-License-Identifier: BSD-3-Clause
// The volumes that a daemon serves, as the control service sees them: they come and go while it answers. Thread-safe.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "server/config.h"

namespace pmirror::server {

class PrimaryView;
class ReplicaView;

// A value; exactly one of the views is set. Who has one may use it as long as he likes.
struct ServedVolume {
  std::shared_ptr<const VolumeConfig> config;
  std::shared_ptr<PrimaryView> primary;
  std::shared_ptr<ReplicaView> replica;
};

class ServedVolumes {
 public:
  std::vector<ServedVolume> All() const {
    const std::lock_guard lock(mutex_);
    return volumes_;
  }
  // In the place of the one with its uuid, or as one more.
  void Put(ServedVolume volume) {
    const std::lock_guard lock(mutex_);
    const auto found = Find(volume.config->uuid);
    if (found != volumes_.end()) {
      *found = std::move(volume);
    } else {
      volumes_.push_back(std::move(volume));
    }
  }
  // What is configured of it has changed. Nothing when it is not served.
  void SetConfig(const VolumeConfig& config) {
    const std::lock_guard lock(mutex_);
    if (const auto found = Find(config.uuid); found != volumes_.end()) {
      found->config = std::make_shared<const VolumeConfig>(config);
    }
  }
  void Remove(const Uuid& uuid) {
    const std::lock_guard lock(mutex_);
    std::erase_if(volumes_, [&](const ServedVolume& volume) { return volume.config->uuid == uuid; });
  }
  void Clear() {
    const std::lock_guard lock(mutex_);
    volumes_.clear();
  }

 private:
  std::vector<ServedVolume>::iterator Find(const Uuid& uuid) {
    return std::find_if(volumes_.begin(), volumes_.end(),
                        [&](const ServedVolume& volume) { return volume.config->uuid == uuid; });
  }

  mutable std::mutex mutex_;
  std::vector<ServedVolume> volumes_;  // guarded by mutex_
};

}  // namespace pmirror::server
