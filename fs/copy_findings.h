// SPDX-License-Identifier: BSD-3-Clause
// What comparisons of a volume's copies have found since it was mounted, by the background check and by `pmirror verify`: for status, and
// for the events copies_differ and copies_equal, which are one condition for each replica. Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "fs/event_sink.h"
#include "proto/control.pb.h"
#include "recovery/verifier.h"
#include "replication/types.h"

namespace pmirror::fs {

class CopyFindings {
 public:
  static constexpr size_t kMostPlaces =
      256;  // kept for one replica; what is beyond, the next round finds again

  // Where a replica differs. Of those that are kept none overlaps another.
  struct Place {
    FileId file = FileId::kNone;
    std::string path;
    Extent extent;  // empty: the replica has no such file
  };

  // `nodes`: of the replicas, by index. `events` must outlive this.
  CopyFindings(std::string volume, std::vector<std::string> nodes, EventSink& events);

  // A replica more: the next index.
  void Add(const std::string& node);
  // It has left the volume: nothing is known of its copy any more.
  void Remove(size_t replica);

  // --- the background check ---
  void RoundBegan(uint64_t bytes);
  void RoundEnded();
  void Looked(uint64_t bytes);  // of the round's
  // So much was compared with the replica; of that, programs stored to `busy` bytes all the time.
  // Some of it was not compared in this round: nobody answered, or programs stored to it without a pause.
  void NotCompared(size_t replica);
  void Compared(size_t replica, uint64_t bytes, uint64_t busy);
  void Differs(size_t replica, const Place& place);
  std::vector<Place> Known(size_t replica) const;
  // A place that was known is equal now, or its file is gone.
  void Mended(size_t replica, const Place& place);

  // --- pmirror verify ---
  void Verified(const std::string& node, const recovery::VerifyResult& result);

  void Fill(size_t replica, control::ReplicaStatus& status) const;

 private:
  struct Verdict {
    int64_t time_us = 0;  // since 1970
    uint64_t bytes = 0;
    uint64_t differences = 0;
    uint64_t busy = 0;
  };
  struct Replica {
    std::string node;
    std::vector<Place> places;
    bool more = false;        // differs in further places that are not kept, as of the last complete round
    bool round_more = false;  // likewise, of this one
    bool round_whole = true;  // everything was compared in this round so far
    bool told = false;        // copies_differ, and not yet copies_equal
    bool verify_says =
        false;  // the last verify found differences: only another one can say that they are gone
    uint64_t compared = 0;
    uint64_t busy = 0;
    int64_t time_us = 0;  // of the last comparison
    std::optional<Verdict> verdict;
  };
  void Tell(Replica& replica, const char* found_by, const std::string& path, const char* what, Extent extent);
  void TellIfEqual(Replica& replica);
  void TellEqual(Replica& replica);

  const std::string volume_;
  EventSink& events_;
  mutable std::mutex mutex_;
  std::vector<Replica> replicas_;  // guarded by mutex_, as all below
  uint64_t rounds_ = 0;            // complete ones
  uint64_t round_bytes_ = 0;
  uint64_t round_done_ = 0;
};

}  // namespace pmirror::fs
