// SPDX-License-Identifier: BSD-3-Clause
// A replica for tests of the sending side: threads that read frames from real sockets, check them, keep an
// image of every file by order number, and answer as a script says. It is its own Connector.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "replication/data_session.h"

namespace pmirror {

class FakeReplica : public Connector {
 public:
  enum class Link { kUnix, kTcp4, kTcp6 };
  struct Frame {
    FrameHeader header{};
    std::vector<WireRange> ranges;
    std::vector<std::byte> payload;
    FrameKind kind() const { return FrameKind{header.kind}; }
  };
  enum class Reaction {
    kApply,       // apply; acknowledge when asked to
    kNoAnswer,    // apply, and say nothing (a later acknowledgement covers it)
    kRefuse,      // with `code`; then acknowledge when asked to
    kCut,         // close the connection without having applied it
    kCutInReply,  // apply, and close in the middle of the acknowledgement
    kSlowReply,   // apply, and acknowledge byte by byte
    kGarbage,     // answer with something that is no frame
  };
  struct Answer {
    Reaction reaction = Reaction::kApply;
    RefusalCode code = RefusalCode::kRecapture;
  };
  using Script = std::function<Answer(const Frame&)>;

  explicit FakeReplica(Link link = Link::kTcp4) : link_(link) {}
  ~FakeReplica() override;

  Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline deadline) override;

  // May be changed at any time; the script is called by the serving threads, one at a time.
  void SetScript(Script script);
  void SetWindow(uint64_t bytes);
  // What its hello acks say from the next connection on.
  void SetAbilities(uint64_t abilities);
  // Connect fails with this errno until it is 0 again.
  void SetConnectError(int error);
  // The connection is closed when this many more bytes have been read from it, wherever in a frame that is.
  void CutAfterBytes(uint64_t bytes);
  void CutNow();
  // Reads nothing while paused.
  void Pause(bool paused);
  // Does not keep images (large tests).
  void KeepImages(bool keep);

  std::vector<std::byte> Image(FileId file) const;
  // Changes a byte of the image as a failing medium would: nobody is told, and no order number.
  void Spoil(FileId file, size_t at);
  uint64_t frames(FrameKind kind) const;
  uint64_t connects() const;
  uint64_t faults() const;  // frames that broke the protocol; 0 at the end of every good test
  std::vector<uint64_t> orders(FileId file) const;  // in the order of their coming, without repeats
  uint8_t all_flags() const;
  // Waits (60 s at most, then false) for something that the script or a frame changes.
  bool WaitFor(const std::function<bool(const FakeReplica&)>& condition);

 private:
  struct Stored {
    std::vector<std::byte> bytes;
    std::vector<uint64_t> order;  // of each byte
    std::vector<uint64_t> orders;
  };
  struct Serving;

  void Serve(UniqueFd socket, SessionId session, uint64_t number);
  bool ReadFully(int socket, void* to, size_t bytes);
  bool ReadFrame(int socket, Frame& frame);
  bool Check(const Frame& frame, Serving& serving);
  void Apply(const Frame& frame);
  VerifiedBody Verify(const Frame& frame);
  ConfirmedBody Confirm(const Frame& frame);
  void SendReply(int socket, const Serving& serving, FrameKind kind, std::span<const std::byte> body,
                 size_t limit, bool slowly);

  const Link link_;
  mutable std::recursive_mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<std::thread> threads_;
  std::vector<int> open_sockets_;
  Script script_;
  uint64_t window_ = 1 << 20;
  int connect_error_ = 0;
  uint64_t abilities_ = kCanConfirm;
  uint64_t cut_after_ = UINT64_MAX;
  bool paused_ = false;
  bool keep_ = true;
  bool ending_ = false;
  std::map<uint64_t, Stored> files_;
  std::map<FrameKind, uint64_t> frames_;
  std::map<uint64_t, Sequence> received_;  // by session
  std::map<uint64_t, uint64_t> current_;   // number of a session's latest connection
  uint64_t connects_ = 0;
  uint64_t faults_ = 0;
  uint64_t next_session_ = 1;
  uint8_t flags_ = 0;
};

}  // namespace pmirror
