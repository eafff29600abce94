// SPDX-License-Identifier: BSD-3-Clause
// The protocol between a program's preload library and the daemon of the same node: SOCK_SEQPACKET UNIX socket, fixed-size records, one
// request and one reply each, descriptors by SCM_RIGHTS. The daemon trusts nothing but the kernel: the peer's pid and uid come from
// SO_PEERCRED, rights on a file from the descriptor that the program passes.
//
// A process has one *main* connection, made before its first open (constructor, and again in a forked child); its end is the process's
// end. Requests that may take long (kOpenSession, kSyncOthers, kSyncVolume, kAwaitClose) go over further connections of the same process, so that one
// waiting thread does not hold up the others; each connection carries one request at a time.
//
// Both sides refuse a record whose size or version is not theirs (they are installed together).
#pragma once

#include <cstdint>

#include "replication/types.h"

namespace pmirror::local {

constexpr uint32_t kVersion = 1;
constexpr size_t kMaxVolumes = 32;   // mounted on one node
constexpr size_t kMaxHandover = 64;  // extents in one handover record
constexpr char kSocketEnvironment[] =
    "PMIRROR_SOCKET";  // path; otherwise the mount's source names it: "pmirror:<path>"

enum class RequestKind : uint32_t {
  // First on every connection. main != 0: this process will open files of the mounts; passes the ticket table and, when it could be opened,
  // /proc/self/pagemap.  fds: [ticket table, pagemap]. Reply: mounts; fds: one volume page per mount, in order.
  kHello = 1,
  // A descriptor of a regular file on a mount -> its backing file. fds: [fd]. Reply: FileReply; fds: [backing fd, order page (absent for a
  // read-only descriptor)]. EBUSY: a plain handle is open (pid in `holder`). ENODEV: not a pmirror file. ESTALE: gone.
  kOpenBacking = 2,
  // A mapping of the backing file now exists at [address, address+length). Until kUnmapped the daemon counts this process as a mapper, and
  // scans the range when it needs to. Must be answered before the program learns the address.
  kMapped = 3,
  // Mapping gone or about to go; `extents` are file ranges written and not replicated: the daemon captures them (it holds them dirty until then).
  // length may cut a mapping in two. abandoned != 0: extents unknown, all of the range may be dirty.
  kUnmapped = 4,
  // The program needs no backing descriptor of this file any more (its last mapping is gone).
  kCloseBacking = 5,
  // A data session to replica `replica` of `volume`. session 0: new; otherwise resume, next sequence given. Reply: SessionReply; fds: [socket].
  // The daemon waits at most `wait_ns` for the replica: ETIMEDOUT; ESHUTDOWN when it is out of the set.
  kOpenSession = 6,
  // Make what *other* processes and the daemon hold dirty in a range of a file durable on the replicas (trap 4). length 0: whole file.
  kSyncOthers = 7,
  // sync(2), syncfs(2): everything of the volume, this process's own stores excepted (it has sent them itself).
  kSyncVolume = 8,
  // A note for the daemon's log and counters: a sync began or stopped waiting under kSuspend, recaptures, waits.
  kReport = 9,
  // Wait until programs without the library have closed the file, at most `wait_ns`: EBUSY when they have not. Another may open it right
  // after: what counts is the next kOpenBacking.
  kAwaitClose = 10,
  // This process had another daemon before, and has told this one of every file and mapping: what the daemon knew of it from /proc is not
  // needed any more. Over the main connection.
  kRejoined = 11,
  // First on a connection, instead of a hello, of any program, preloaded or not: it wants to know how the volumes are, and has nothing to do
  // with their files. Reply: mounts; fds: one volume page per mount. From then on the daemon sends an Event for each change, the present
  // state of each volume first; a program that says kObserve again on the same connection is refused.
  kObserve = 12,
  // The process's capture log of `volume` (replication/capture_log.h), the same one whenever it is asked for. fds: [log, clock]. ENOENT: no
  // replica of the volume ever trails.
  kOpenLog = 13,
};
// Milliseconds that mmap waits for programs without the library to close the file, before it fails with EBUSY. Set by `pmirror run --wait`.
constexpr char kWaitEnvironment[] = "PMIRROR_WAIT_MS";
// Set by `pmirror run`: the program does not start when its daemon cannot be reached. The library takes it out of the environment, so that
// it holds for that program alone.
constexpr char kRequiredEnvironment[] = "PMIRROR_REQUIRED";

struct Request {
  uint32_t version = kVersion;
  RequestKind kind{};
  uint32_t volume = 0;   // index in the hello reply's mounts
  uint32_t replica = 0;  // index in the volume
  uint64_t file = 0;     // FileId
  uint64_t address = 0;  // kMapped, kUnmapped
  uint64_t length = 0;   // bytes
  uint64_t offset = 0;   // bytes in the file
  uint64_t session = 0;  // kOpenSession
  uint64_t next_sequence = 0;
  uint64_t wait_ns = 0;       // kOpenSession, kSyncOthers, kSyncVolume, kAwaitClose
  uint32_t main = 0;          // kHello
  uint32_t writable = 0;      // kMapped: stores are possible (now, or after mprotect)
  uint32_t tracked = 0;       // kMapped: Tracking
  uint32_t abandoned = 0;     // kUnmapped
  uint32_t extent_count = 0;  // kUnmapped
  uint32_t report = 0;        // kReport: ReportKind
  uint64_t value = 0;         // kReport
  Extent extents[kMaxHandover];
};

enum class ReportKind : uint32_t {
  kSuspended = 1,
  kResumed,
  kFailed,
  kRecaptured,
  kSenderFull,
  kPeerCongested,
  kReconnected,
  kRefused,  // value: replica << 32 | errno; a replica cannot apply what it was sent, and the policy is to go on without it
  kSynced
};

enum class EventKind : uint32_t {
  kState = 1,               // how the volume is, at the beginning of an observation
  kRedundancyLost = 2,      // a replica neither is a member of the in-sync set any more nor trails it
  kRedundancyRestored = 3,  // a replica has become a member, or trails
  kFenced = 4,              // another node is or may be primary
  kClosing = 5,             // the daemon leaves the volume
  kLag = 6,  // a replica that trails is older than its RPO, or not any more: Event::lagging says which
};

// What an observer is sent (kObserve).
struct Event {
  uint32_t version = kVersion;
  EventKind kind{};
  uint32_t volume = 0;       // index in the reply's mounts
  uint32_t replica = 0;      // index; kMaxReplicas: none in particular
  uint32_t members = 0;      // bit a replica, after the change
  uint32_t trailing = 0;     // bit a replica that trails, likewise
  uint32_t state = 0;        // VolumeState
  uint32_t lagging = 0;      // bit a replica that trails and is older than its RPO, after the change
  uint64_t set_version = 0;  // of the in-sync set after the change
  uint64_t time_ns = 0;      // CLOCK_REALTIME
  uint64_t missed = 0;       // events before this one that found the observer's queue full
};

struct Mount {
  uint64_t device = 0;  // st_dev of the FUSE mount
  Uuid volume{};
  char name[64] = {};  // of the volume, NUL-terminated
};

struct Reply {
  uint32_t version = kVersion;
  int32_t error = 0;  // errno, 0 on success
  uint32_t volume = 0;
  uint32_t mount_count = 0;
  int32_t holder = 0;  // pid that makes kOpenBacking EBUSY
  uint32_t slot = 0;   // kOpenBacking: index into VolumePage::slots
  uint64_t file = 0;
  uint64_t size = 0;
  uint32_t writable = 0;
  uint32_t reserved = 0;
  uint64_t session = 0;  // kOpenSession
  uint64_t received_sequence = 0;
  uint64_t durable_sequence = 0;
  uint64_t credit_limit = 0;
  char text[128] = {};  // one sentence when error != 0
  Mount mounts[kMaxVolumes];
};

}  // namespace pmirror::local
