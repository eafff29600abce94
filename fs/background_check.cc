// SPDX-License-Identifier: BSD-3-Clause
// See background_check.h.
#include "fs/background_check.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "fs/live_stores.h"
#include "recovery/random_value.h"
#include "recovery/verifier.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kCallTimeout{10000};
constexpr seconds kMostPatience{5};  // that one question has for a replica that does not take what it lacks
constexpr seconds kLookAgain{5};     // between looks at places that are known to differ
constexpr milliseconds kWaitForReplicas{500};
constexpr int kAttempts = 16;  // at what looks different; then the next round tries again

// Whether the replica, or the set, only has to be asked another time.
bool Passes(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsAborted(status) ||
         absl::IsCancelled(status);
}

}  // namespace

// Our copy, where the last walk saw its files: one that is not there any more, and not open, is looked for in the next round. It has been renamed
// perhaps, and is gone only when that walk does not see it.
class BackgroundCheck::Original : public recovery::ChecksumSource {
 public:
  Original(UniqueFd root, VolumeReplicator& replicator) : tree_(std::move(root)), replicator_(replicator) {}

  absl::StatusOr<recovery::Inventory> Walk() { return tree_.Inventory(); }

  absl::StatusOr<recovery::BlockChecksums> Checksums(FileId id, Extent extent, uint32_t block) override {
    const std::shared_ptr<FileState> file = replicator_.Find(id);
    const UniqueFd known = file == nullptr ? tree_.OpenKnown(id) : UniqueFd();
    const int fd = file == nullptr ? known.get() : file->backing_fd();
    if (fd < 0) {
      return tree_.Knows(id) ? absl::AbortedError("it is not where it was")
                             : absl::NotFoundError("it is gone");
    }
    struct stat info {};
    if (::fstat(fd, &info) != 0) {
      return absl::ErrnoToStatus(errno, "look at the file");
    }
    if (info.st_nlink == 0) {
      return absl::NotFoundError("it has no name any more");
    }
    return recovery::ChecksumBlocks(fd, extent, block);
  }

 private:
  recovery::LocalTree tree_;
  VolumeReplicator& replicator_;
};

BackgroundCheck::BackgroundCheck(Options options, VolumeReplicator& replicator, const InSyncSet& set,
                                 Trailer* trailer, CopyFindings& findings, EventSink& events)
    : options_(std::move(options)),
      replicator_(replicator),
      set_(set),
      trailer_(trailer),
      findings_(findings),
      events_(events),
      patience_(std::min<std::chrono::nanoseconds>(options_.deadline, kMostPatience)) {
  for (const CopyOf& copy : options_.copies) {
    auto client = std::make_unique<proto::ControlClient>(copy.control);
    auto tree = std::make_unique<RemoteTree>(*client, options_.volume, kCallTimeout);
    copies_.push_back({std::move(client), std::move(tree)});
  }
}

BackgroundCheck::~BackgroundCheck() { Stop(); }

void BackgroundCheck::Start() {
  thread_ = std::thread([this] { Run(); });
}

void BackgroundCheck::RequestStop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (const Copy& copy : copies_) {
    copy.client->Cancel();
  }
}

void BackgroundCheck::Stop() {
  RequestStop();
  if (thread_.joinable()) {
    thread_.join();
  }
}

bool BackgroundCheck::stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

// False: it is to end.
bool BackgroundCheck::RestUntil(Clock::time_point time) {
  std::unique_lock lock(mutex_);
  wake_.wait_until(lock, time, [this] { return stopping_; });
  return !stopping_;
}

// Nobody whom syncs wait for is away: what is not brought over yet could not be, and everything would look different.
bool BackgroundCheck::MayLook() const {
  const SetWord set = set_.set();
  bool any = false;
  for (size_t i = 0; i < copies_.size(); ++i) {
    const bool asked = ((set.sent_to() | set.trailing()) & (1U << i)) != 0;
    if (asked && !options_.counts(i)) {
      return false;
    }
    any = any || asked;
  }
  return any;
}

void BackgroundCheck::Run() {
  while (!stopping()) {
    if (!MayLook()) {
      RestUntil(Clock::now() + kWaitForReplicas);
      continue;
    }
    UniqueFd root(::fcntl(options_.backing_root, F_DUPFD_CLOEXEC, 0));
    absl::Status status = root.valid() ? absl::OkStatus() : absl::ErrnoToStatus(errno, "no descriptor");
    if (status.ok()) {
      original_ = std::make_unique<Original>(std::move(root), replicator_);
      const Clock::time_point begun = Clock::now();
      const absl::StatusOr<recovery::Inventory> inventory = original_->Walk();
      status = inventory.status();
      if (status.ok()) {
        recovery::CheckRound round(*inventory, recovery::RandomNumber());
        GoRound(round, Clock::now() - begun);
      }
    }
    if (!status.ok()) {
      NoteError("", "", status);
      RestUntil(Clock::now() + options_.period);
    }
  }
}

// Each step is preceded by its rest: a volume that is mounted and left at once is not read.
// `worked`: the walk.
void BackgroundCheck::GoRound(recovery::CheckRound& round, Clock::duration worked) {
  findings_.RoundBegan(round.bytes());
  std::optional<recovery::CheckRound::Step> step = round.Next();
  while (RestBeforeStep(
      Clock::now() + round.RestAfter(step.has_value() ? step->extent.length : 0, worked, options_.period))) {
    if (!step.has_value()) {
      findings_.RoundEnded();
      return;
    }
    const Clock::time_point begun = Clock::now();
    waited_ = {};
    Look(*step);
    findings_.Looked(step->extent.length);
    worked = Clock::now() - begun - waited_;
    step = round.Next();
  }
}

// Until then at least, and until the replicas are there. False: it is to end.
bool BackgroundCheck::RestBeforeStep(Clock::time_point due) {
  while (true) {
    const Clock::time_point now = Clock::now();
    const bool may = MayLook();
    if (may && now >= next_look_again_) {
      LookAgain();
      const Clock::time_point ended = Clock::now();
      next_look_again_ =
          ended + std::max<Clock::duration>(kLookAgain, recovery::kCheckRestShare * (ended - now));
    }
    if (may && now >= due) {
      return true;
    }
    if (!RestUntil(may ? std::min(due, next_look_again_) : now + kWaitForReplicas)) {
      return false;
    }
  }
}

void BackgroundCheck::Look(const recovery::CheckRound::Step& step) {
  const absl::StatusOr<recovery::BlockChecksums> ours =
      original_->Checksums(step.file, step.extent, recovery::kVerifyBlock);
  if (!ours.ok()) {
    if (!absl::IsNotFound(ours.status())) {
      NoteError(step.path, "", ours.status());
      for (size_t i = 0; i < copies_.size(); ++i) {
        findings_.NotCompared(i);
      }
    }
    return;
  }
  for (size_t i = 0; i < copies_.size() && !stopping(); ++i) {
    if ((!set_.member(i) && !set_.trailing(i)) || !Compare(i, step, *ours)) {
      findings_.NotCompared(i);
    }
  }
}

// False: not all of it.
bool BackgroundCheck::Compare(size_t replica, const recovery::CheckRound::Step& step,
                              const recovery::BlockChecksums& ours) {
  const absl::StatusOr<recovery::BlockChecksums> theirs =
      copies_[replica].tree->Checksums(step.file, step.extent, recovery::kVerifyBlock);
  Extent suspicious;  // from the first block that differs to the last
  if (theirs.ok()) {
    for (const Extent& block :
         recovery::BlocksThatDiffer(ours, *theirs, step.extent, recovery::kVerifyBlock)) {
      suspicious.offset = suspicious.length == 0 ? block.offset : suspicious.offset;
      suspicious.length = block.end() - suspicious.offset;
    }
  } else if (absl::IsNotFound(theirs.status())) {
    suspicious = {step.extent.offset, std::min<uint64_t>(step.extent.length, recovery::kVerifyPage)};
  } else {
    NoteError(step.path, options_.copies[replica].node, theirs.status());
    return false;
  }
  ExtentSet different;  // neighbours become one
  ExtentSet busy;
  if (suspicious.length != 0) {
    const absl::StatusOr<recovery::SettledRange> settled = Settle(replica, step.file, suspicious);
    if (!settled.ok()) {
      NoteError(step.path, options_.copies[replica].node, settled.status());
      return false;
    }
    if (settled->missing) {
      findings_.Differs(replica, {step.file, step.path, {}});
    }
    std::for_each(settled->different.begin(), settled->different.end(),
                  [&](const Extent& page) { different.Add(page); });
    std::for_each(settled->busy.begin(), settled->busy.end(), [&](const Extent& page) { busy.Add(page); });
  }
  for (const Extent& range : different.extents()) {
    findings_.Differs(replica, {step.file, step.path, range});
  }
  findings_.Compared(replica, step.extent.length, busy.bytes());
  return busy.empty();
}

absl::StatusOr<recovery::SettledRange> BackgroundCheck::Settle(size_t replica, FileId file, Extent extent) {
  LiveStores stores(replica, replicator_, set_, trailer_, patience_, [this] { return stopping(); });
  if (!MayLook() || (!set_.member(replica) && !set_.trailing(replica))) {
    return absl::AbortedError("the replica does not count now");
  }
  absl::StatusOr<recovery::SettledRange> settled =
      recovery::SettleRange(*original_, *copies_[replica].tree, stores, file, extent, kAttempts);
  waited_ += stores.waited();
  // A copy that has left meanwhile may be changed by whatever brings it back.
  const bool same_set = set_.set().raw == stores.begun_with().raw && MayLook();
  return settled.ok() && !same_set ? absl::AbortedError("the in-sync set has moved") : std::move(settled);
}

// Whether what was found is still so: somebody may have repaired it.
void BackgroundCheck::LookAgain() {
  for (size_t i = 0; i < copies_.size(); ++i) {
    for (const CopyFindings::Place& place : findings_.Known(i)) {
      const bool missing = place.extent.length == 0;
      if (stopping() || !MayLook()) {
        return;
      }
      if (!set_.member(i) && !set_.trailing(i)) {
        break;  // nothing can be said of this one now
      }
      const absl::StatusOr<recovery::SettledRange> settled =
          Settle(i, place.file, missing ? Extent{0, recovery::kVerifyPage} : place.extent);
      if (!settled.ok() || settled->missing || !settled->busy.empty()) {
        continue;
      }
      if (missing) {  // it is there again, perhaps with other bytes
        for (const Extent& page : settled->different) {
          findings_.Differs(i, {place.file, place.path, page});
        }
      }
      if (missing || settled->different.empty()) {
        findings_.Mended(i, place);
      }
    }
  }
}

void BackgroundCheck::NoteError(const std::string& path, const std::string& node,
                                const absl::Status& status) {
  if (Passes(status)) {
    return;  // the state of the replica tells, and the next round looks again
  }
  events_.Report(Severity::kWarning, "check_failed",
                 {{"volume", options_.volume_name},
                  {"path", path},
                  {"node", node},
                  {"reason", std::string(status.message())}});
}

}  // namespace pmirror::fs
