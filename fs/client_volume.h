// SPDX-License-Identifier: BSD-3-Clause
// One mounted volume as the registry of programs needs it (client_registry.h). PrimaryVolume implements it. Thread-safe. Errors are errnos.
#pragma once

#include <sys/types.h>

#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "fs/file_system.h"
#include "fs/foreign_stores.h"
#include "fs/page_listener.h"
#include "replication/data_session.h"
#include "replication/deadline.h"
#include "replication/local_protocol.h"
#include "replication/types.h"

namespace pmirror::fs {

class ClientVolume {
 public:
  virtual ~ClientVolume() = default;

  virtual const std::string& name() const = 0;
  virtual const Uuid& uuid() const = 0;
  virtual dev_t mount_device() const = 0;    // st_dev of files of the mount
  virtual dev_t backing_device() const = 0;  // st_dev of the backing files
  virtual int page_fd() const = 0;           // the volume page, for programs
  // Tells `listener` of each change of the page, until StopListening() has returned.
  virtual void Listen(PageListener& listener) = 0;
  virtual void StopListening(PageListener& listener) = 0;
  virtual size_t replica_count() const = 0;  // bound of the indices of replicas
  // Direct mode of files (FileSystem::AcquireDirect).
  virtual FileSystem& file_system() = 0;
  // What programs store through mappings, as the registry knows it. Called once, before a program can map a file of the volume.
  virtual void UseForeignStores(ForeignStores& stores) = 0;

  // What a program maps to take part in captures of a file.
  struct SharedParts {
    uint32_t slot = 0;  // index into VolumePage::slots
    int order_fd = -1;  // the order page; owned by the file, valid while somebody holds the ReplicatedFile
  };
  virtual SharedParts PartsOf(const ReplicatedFile& file) const = 0;

  // A connection to replica `replica` for a program's session (0: a new one), hello answered. Waits until the deadline: ETIMEDOUT;
  // ESHUTDOWN: the replica is out of the set; ESTALE: it follows a newer primary.
  virtual Result<Connector::Connection> OpenSession(size_t replica, const std::string& process,
                                                    SessionId session, Sequence next_sequence,
                                                    Deadline deadline) = 0;
  // Lets a program's session write `file` on a replica; 0 when the replica has said yes.
  virtual int Grant(size_t replica, SessionId session, FileId file, Deadline deadline) = 0;
  // The program's session is over. Best effort, does not wait long.
  virtual void EndSession(size_t replica, SessionId session) = 0;

  // How many processes have mapped the file for writing now (kFileShared when more than one). Called under the registry's lock: quick.
  virtual void SetWritingMappers(ReplicatedFile& file, size_t processes) = 0;

  // The extents are stored and on no replica for sure, and their owner has let go of them (it unmapped, or died): the volume keeps them dirty
  // until they are captured. Does not wait for a replica; a capture is begun soon.
  virtual void HoldDirty(const std::shared_ptr<ReplicatedFile>& file, std::span<const Extent> extents) = 0;
  // Likewise, where nobody knows what of the extent has been stored to.
  virtual void HoldDoubtful(const std::shared_ptr<ReplicatedFile>& file, Extent extent) = 0;

  // Requests of programs that may take long; 0 when everything that processes other than `asking`, and the volume itself, hold dirty is
  // durable on every replica.
  virtual int SyncOthers(const std::shared_ptr<ReplicatedFile>& file, Extent range, ProcessSerial asking,
                         Deadline deadline) = 0;
  virtual int SyncAll(ProcessSerial asking, Deadline deadline) = 0;

  // What a program maps to capture for replicas that trail (replication/capture_log.h). The descriptors belong to the volume and stay valid
  // until CloseCaptureLog. kNotFound: no replica of the volume ever trails.
  struct CaptureLogParts {
    int log_fd = -1;
    int clock_fd = -1;
  };
  virtual absl::StatusOr<CaptureLogParts> OpenCaptureLog(ProcessSerial program) = 0;
  // The program is gone. OK when it had none.
  virtual void CloseCaptureLog(ProcessSerial program) = 0;

  // A program's note (kReport), for the log and the counters.
  virtual void Report(pid_t pid, local::ReportKind kind, FileId file, uint64_t value) = 0;
};

}  // namespace pmirror::fs
