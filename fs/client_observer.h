// SPDX-License-Identifier: BSD-3-Clause
// A program that watches how the volumes are (local_protocol.h, kObserve): from what their pages' owners tell to the records it is sent.
//
// Threads: Serve() is one thread's; the pages' owners tell from others. A program that does not read is never waited for: its queue is
// bounded, and what found it full is counted in the next record that fits.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "fs/client_volume.h"
#include "fs/page_listener.h"
#include "fs/registered_volume.h"
#include "replication/local_protocol.h"
#include "replication/unique_fd.h"

namespace pmirror::fs {

// Records on their way to one observer.
class ObserverQueue {
 public:
  static constexpr size_t kMaxEvents = 256;  // behind what the socket holds

  // Invalid: no descriptors are left.
  ObserverQueue();
  int fd() const { return wake_.get(); }  // readable while there may be something

  void Push(local::Event event);
  // The oldest one. False: none is there.
  bool Front(local::Event& event) const;
  void Pop();

 private:
  UniqueFd wake_;
  mutable std::mutex mutex_;         // a leaf
  std::deque<local::Event> events_;  // guarded by mutex_
  uint64_t missed_ = 0;              // guarded by mutex_; since the last one that found room
};

class ClientObserver {
 public:
  // `volumes` must outlive the observer.
  explicit ClientObserver(RegisteredVolumes& volumes);
  ~ClientObserver();
  ClientObserver(const ClientObserver&) = delete;
  ClientObserver& operator=(const ClientObserver&) = delete;

  bool valid() const { return queue_.fd() >= 0; }
  // Sends records until the program closes the socket, says something, or it is shut down here.
  void Serve(int socket);

 private:
  class OneVolume;
  bool SendQueued(int socket, bool& full);

  ObserverQueue queue_;
  std::vector<std::unique_ptr<OneVolume>> listeners_;
};

}  // namespace pmirror::fs
