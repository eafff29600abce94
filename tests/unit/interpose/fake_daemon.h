// SPDX-License-Identifier: BSD-3-Clause
// A local daemon for tests of the preload library: a UNIX server that speaks local_protocol.h. The "mount" is
// a plain directory; a file's backing file is the file itself, its id the inode number. Sessions go to a
// FakeReplica. Everything that programs say is recorded.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "replication/local_protocol.h"
#include "replication/order_page.h"
#include "replication/persistence.h"
#include "replication/ticket_table.h"
#include "replication/tracker.h"
#include "replication/unique_fd.h"
#include "replication/volume_page.h"
#include "tests/unit/replication/fake_replica.h"

namespace pmirror::interpose {

class FakeDaemon {
 public:
  struct Settings {
    Tracking tracking = Tracking::kWritten;
    Domain domain = Domain::kVolatile;
    OnLoss on_loss = OnLoss::kFail;
    std::chrono::milliseconds deadline{2000};
    std::chrono::milliseconds suspend{0};
  };
  struct Mapped {
    pid_t pid = 0;
    uint64_t file = 0;
    uint64_t address = 0;
    uint64_t length = 0;
    uint64_t offset = 0;
    bool writable = false;
    Tracking tracked = Tracking::kNone;
  };

  FakeDaemon() : FakeDaemon(Settings()) {}
  explicit FakeDaemon(Settings settings);
  ~FakeDaemon();

  const std::string& directory() const { return directory_; }
  const std::string& socket_path() const { return socket_path_; }
  FakeReplica& replica() { return replica_; }
  VolumePage& page() { return *page_; }

  // As when the daemon is killed, and another one is started: it knows nothing of what was said before. Between the two nobody is there.
  void Stop();
  void StartAgain();

  // A file of the mount, filled with `bytes` zeros.
  std::string MakeFile(const std::string& name, size_t bytes);
  FileId IdOf(const std::string& name) const;
  std::string Content(const std::string& name) const;
  // What the replica has of it, as long as the file is.
  std::string Replicated(const std::string& name);

  // The next requests of this kind fail with the errno (0: no more).
  void Refuse(local::RequestKind kind, int error);
  // Called for each request of the kind, before it is answered, with no lock held.
  void OnRequest(local::RequestKind kind, std::function<void(pid_t, const local::Request&)> call);
  void SetFileFlags(const std::string& name, uint32_t flags);

  // What has been said so far. Mappings that were unmapped are gone from Mappings().
  std::vector<Mapped> Mappings() const;
  std::vector<Extent> HandedOver() const;
  size_t Count(local::RequestKind kind) const;
  std::vector<pid_t> Processes() const;  // that said hello on a main connection, in that order
  // Waits (30 s at most, then false) until the condition holds.
  bool WaitFor(const std::function<bool()>& condition);

  // The ticket table and the page map of a process, as handed over. Null, -1: unknown process.
  const TicketTable* Tickets(pid_t pid) const;
  int Pagemap(pid_t pid) const;

 private:
  struct Process {
    UniqueFd pagemap;
    TicketTable* tickets = nullptr;
  };
  struct File {
    uint32_t slot = 0;
    UniqueFd order;
  };

  void MakePage();
  void Listen();
  void Accept();
  void Serve(int connection);
  void Answer(pid_t pid, const local::Request& request, std::vector<UniqueFd>& received, local::Reply& reply,
              std::vector<int>& out, std::vector<UniqueFd>& owned);
  void AnswerHello(pid_t pid, const local::Request& request, std::vector<UniqueFd>& received,
                   local::Reply& reply, std::vector<int>& out);
  void AnswerOpenBacking(std::vector<UniqueFd>& received, local::Reply& reply, std::vector<int>& out,
                         std::vector<UniqueFd>& owned);
  void AnswerOpenSession(const local::Request& request, local::Reply& reply, std::vector<int>& out,
                         std::vector<UniqueFd>& owned);
  void TakeUnmapped(pid_t pid, const local::Request& request);
  File& Open(uint64_t id, uint64_t size);

  const Settings settings_;
  std::string directory_;
  std::string socket_path_;
  uint64_t device_ = 0;
  FakeReplica replica_{FakeReplica::Link::kTcp4};
  UniqueFd page_memory_;
  VolumePage* page_ = nullptr;
  UniqueFd listener_;
  std::thread acceptor_;

  mutable std::recursive_mutex mutex_;
  std::condition_variable_any changed_;
  bool ending_ = false;
  uint64_t first_order_ = 0;  // of new order pages: above every number that was used
  std::vector<std::thread> servers_;
  std::vector<int> connections_;
  std::map<uint64_t, File> files_;
  std::map<pid_t, Process> processes_;
  std::vector<pid_t> order_of_processes_;
  std::vector<Mapped> mapped_;
  std::vector<Extent> handed_over_;
  std::map<local::RequestKind, size_t> counts_;
  std::map<local::RequestKind, int> refusals_;
  std::map<local::RequestKind, std::function<void(pid_t, const local::Request&)>> calls_;
};

}  // namespace pmirror::interpose
