// SPDX-License-Identifier: BSD-3-Clause
// What the daemon does for each request of a program but the hello, and at its end. Knows no sockets: the registry (client_registry.h) reads and
// answers.
//
// Threads: any; requests of one process's main connection come one after the other, those that may take long beside them. Locks: client_process.h.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fs/client_process.h"
#include "fs/client_table.h"
#include "fs/event_sink.h"
#include "fs/local_record.h"
#include "fs/program_search.h"
#include "fs/registered_volume.h"

namespace pmirror::fs {

struct ClientReply {
  local::Reply record;
  std::vector<int> descriptors;
  // Owners of the descriptors, until the reply has been sent. To drop the lease may take long.
  std::shared_ptr<LeasedFile> lease;
  UniqueFd owned;
};

// Of a backing file; kNone when it has none.
FileId StoredId(int fd);

// How long a request may take, from now.
Deadline WaitOf(const local::Request& request);

class ClientRequests {
 public:
  // A program waits five seconds for a short request (interpose/daemon_link.h): for the backing file, a close under way may take the one, the replicas'
  // answers to the grants the other.
  static constexpr std::chrono::milliseconds kCloseUnderWay{1000};
  static constexpr std::chrono::milliseconds kGrantPatience{2000};
  static_assert(kCloseUnderWay + kGrantPatience <= std::chrono::seconds(4));
  static constexpr std::chrono::milliseconds kAwaitCloseSlice{
      1000};                                             // then it asks again: Stop() waits for us
  static constexpr std::chrono::hours kLongestWait{24};  // whatever a program asks for
  static constexpr size_t kMaxMappings = 65536;          // of one process; the kernel's own limit is near it
  static constexpr size_t kMaxLeases = 65536;            // of one process

  // The references must outlive this.
  ClientRequests(RegisteredVolumes& volumes, ClientTable& processes, EventSink& events)
      : volumes_(volumes), processes_(processes), events_(events) {}

  // Answers a request other than kHello. `main`: it came over the process's main connection.
  void Answer(const std::shared_ptr<ClientProcess>& process, bool main, ReceivedRequest& received,
              ClientReply& reply);

  // The process is over, or its link to the daemon: what it may have stored and not brought over goes to the volumes, then it is taken from the table,
  // its sessions are ended and its leases dropped. True for the first call; a second one returns when the first is through.
  bool End(const std::shared_ptr<ClientProcess>& process) { return End(process, Dirt::kHeld); }

  // A program of an earlier daemon that was found: until it says kRejoined, or ends, it counts with what it has mapped. Null when nothing of it
  // is of these volumes. Before programs are served.
  std::shared_ptr<ClientProcess> Adopt(FoundProgram& found, ProcessSerial serial);

 private:
  enum class Dirt { kHeld, kKnownElsewhere };  // what a process leaves
  using Process = std::shared_ptr<ClientProcess>;
  using Leases = std::vector<std::shared_ptr<LeasedFile>>;  // let go of; dropped when no lock is held

  // client_requests.cc
  bool End(const Process& process, Dirt dirt);
  void AnswerShort(const Process& process, ReceivedRequest& received, ClientReply& reply);
  void AnswerLong(const Process& process, const local::Request& request, ClientReply& reply);
  void OpenLog(const Process& process, const local::Request& request, ClientReply& reply);
  void SyncOthers(const Process& process, const local::Request& request, ClientReply& reply);
  void SyncVolume(const Process& process, const local::Request& request, ClientReply& reply);
  void AwaitClose(const local::Request& request, ClientReply& reply);
  void Report(const Process& process, const local::Request& request, ClientReply& reply);

  // client_files.cc
  void OpenBacking(const Process& process, ReceivedRequest& received, ClientReply& reply, Leases& let_go);
  void CloseBacking(const Process& process, const local::Request& request, ClientReply& reply,
                    Leases& let_go);
  struct Proof {
    FileKey key;
    bool writable = false;
    bool of_backing = false;  // the descriptor is of the backing file itself,
    ino_t inode = 0;          // which has this number,
    int backing_fd = -1;      // and is the request's
  };
  std::optional<Proof> ProofOf(const ReceivedRequest& received, ClientReply& reply);
  std::shared_ptr<LeasedFile> LeaseFor(const Process& process, const Proof& proof, ClientReply& reply,
                                       Leases& let_go);
  void RefuseLease(const Process& process, const FileKey& key, const FileSystem::DirectAnswer& answer,
                   ClientReply& reply);
  void GrantToSessions(const Process& process, const FileKey& key);

  // client_adoption.cc
  std::shared_ptr<LeasedFile> LeaseFound(const FoundMapping& mapping, FileKey& key, int& error);
  void Rejoined(const Process& process);

  // client_mapping_requests.cc
  void Mapped(const Process& process, const local::Request& request, ClientReply& reply, Leases& let_go);
  void Unmapped(const Process& process, const local::Request& request, ClientReply& reply, Leases& let_go);
  void HoldWritable(const std::vector<ClientMapping>& parts);
  void RemoveMappings(const Process& process, uintptr_t start, uintptr_t past, Leases& let_go);
  void HoldTickets(const ClientProcess& process, const FileKey& key, const LeasedFile& file);

  // client_sessions.cc
  void OpenSession(const Process& process, const local::Request& request, ClientReply& reply);
  void EndSession(const ClientSession& session);

  RegisteredVolumes& volumes_;
  ClientTable& processes_;
  EventSink& events_;
};

}  // namespace pmirror::fs
