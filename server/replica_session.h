// SPDX-License-Identifier: BSD-3-Clause
// One connection of the data plane, from its hello to its end: the shell of Receiver (replication/receiver.h)
// around a socket. Runs on a thread of its own.
//
// A frame is answered by the thread that read it. Acknowledgements are batched: small frames that have
// arrived together are applied first and answered once, and what nobody waits for is acknowledged before the
// thread sleeps.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "replication/spin_budget.h"
#include "replication/unique_fd.h"
#include "server/frame_reader.h"
#include "server/replica_volume.h"

namespace pmirror::server {

class ReplicaSession {
 public:
  struct Environment {
    std::function<ReplicaVolume*(const Uuid&)> find_volume;  // null: not on this node
    std::function<bool(const std::string& node)> reachable;  // test bed: connections of this node are taken
    std::chrono::nanoseconds hello_deadline;                 // from connect to the whole hello
  };

  // `environment` must outlive the object. `socket` is connected, blocking, and belongs to the caller, who
  // may shut it down at any time from any thread to make Run return. `peer`: its address, for the log.
  ReplicaSession(const Environment& environment, int socket, std::string peer);

  // Serves the connection until it ends, for whatever reason; logs that.
  void Run();

 private:
  enum class Progress { kContinue, kEnd };

  bool Greet();
  bool AwaitHello(FrameReader::Frame& frame);
  bool AcceptHello(const FrameReader::Frame& frame);
  void RefuseHello(RefusalCode code, std::string_view why);
  void Serve();
  Progress Handle(const FrameReader::Frame& frame);
  Outcome Do(const FrameReader::Frame& frame);
  Progress Answer();
  void Persist();
  bool Fill();
  ssize_t Receive(int flags);
  ssize_t Spin();
  void AppendRefusal(const FrameHeader& header, RefusalCode code, int error_number);
  void AppendReply(FrameKind kind, std::span<const std::byte> body);
  bool Flush();
  void DamagedFrame();

  const Environment& environment_;
  const int socket_;
  const std::string peer_;
  FrameReader reader_;
  SpinBudget spin_;
  ReplicaVolume* volume_ = nullptr;
  std::shared_ptr<Session> session_;   // held from Greet() to the end of Run()
  std::vector<std::byte> out_;         // frames to send
  std::vector<FrameHeader> barriers_;  // admitted and not served
  int unanswered_ = 0;                 // frames since the last answer
  uint64_t good_frames_ = 0;
  std::string end_ = "peer closed";  // why the connection ended
};

}  // namespace pmirror::server
