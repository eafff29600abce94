// SPDX-License-Identifier: BSD-3-Clause
// Scan and copy. Addresses and descriptors are used inside sections (quiescence.h): a munmap or a dup2 of
// another thread waits for them.
#include "interpose/mapped_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "interpose/guarded_memory.h"
#include "interpose/log.h"
#include "replication/write_tracker.h"

namespace pmirror::interpose {
namespace {

// A scanned range of at least this many bytes may be mostly hole (a mapping that is larger than its file was
// when it was made).
constexpr uint64_t kLookForHoles = 64 << 10;

// SIGBUS must be deliverable while we read memory that may give it, whatever the program blocks: a blocked
// fault kills.
class SigbusDeliverable {
 public:
  SigbusDeliverable() {
    if (!IsDeliverable(SIGBUS)) {
      ::syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, &kMask, &saved_, sizeof(saved_));
    }
  }
  ~SigbusDeliverable() {
    if ((saved_ & kMask) != 0) {
      ::syscall(SYS_rt_sigprocmask, SIG_BLOCK, &kMask, nullptr, sizeof(kMask));
    }
  }
  SigbusDeliverable(const SigbusDeliverable&) = delete;
  SigbusDeliverable& operator=(const SigbusDeliverable&) = delete;

 private:
  static constexpr KernelSignalMask kMask = KernelSignalMask{1} << (SIGBUS - 1);
  KernelSignalMask saved_ = 0;
};

void AddData(Extent extent, int backing_fd, ExtentList& extents) {
  if (extent.length < kLookForHoles || backing_fd < 0) {
    extents.Add(extent);
    return;
  }
  uint64_t at = extent.offset;
  while (at < extent.end()) {
    const off_t data = ::lseek(backing_fd, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0) {
      if (errno != ENXIO) {  // ENXIO: nothing but hole up to the end of the file
        extents.Add({at, extent.end() - at});
      }
      return;
    }
    const off_t hole = ::lseek(backing_fd, data, SEEK_HOLE);
    const uint64_t end = hole < 0 ? extent.end() : std::min(static_cast<uint64_t>(hole), extent.end());
    if (static_cast<uint64_t>(data) < end) {
      extents.Add({static_cast<uint64_t>(data), end - static_cast<uint64_t>(data)});
    }
    at = std::max(end, static_cast<uint64_t>(data) + 1);
  }
}

}  // namespace

void ScanMapping(const Mapping& whole, int backing_fd, ExtentList& extents) {
  // Not beyond the end of the file: nothing can be stored there, and protecting it would cost page tables
  // without end.
  Mapping mapping = whole;
  struct stat status;
  if (backing_fd >= 0 && ::fstat(backing_fd, &status) == 0) {
    const auto size = static_cast<uint64_t>(status.st_size);
    if (size <= whole.offset) {
      return;
    }
    const uint64_t pages = (size - whole.offset + kPageSize - 1) & ~uint64_t{kPageSize - 1};
    mapping.length = std::min<uint64_t>(whole.length, pages);
  }
  const auto tracking = static_cast<Tracking>(mapping.tracking);
  Error scanned{ENOTSUP, "scan"};
  if (tracking != Tracking::kNone) {
    scanned = ScanAndProtect(own_descriptors().Single(OwnKind::kPagemap), tracking, mapping.address,
                             mapping.end(), [&](uintptr_t from, uintptr_t to) {
                               AddData({mapping.OffsetOf(from), to - from}, backing_fd, extents);
                             });
    if (!scanned.ok()) {
      LogLine(LogLevel::kDebug).Text(scanned.doing).Field("errno", static_cast<uint64_t>(scanned.code));
    }
  }
  if (!scanned.ok()) {
    AddData(mapping.extent(), backing_fd, extents);
  }
}

void MappedFile::ScanAndProtect(Extent range, ExtentList& extents) {
  constexpr uint32_t kStores = kMapShared | kMapStored;
  // Every mapping of the file counts: a store through one is covered by a sync through another.
  Mapping mapping;
  for (uintptr_t at = 0; runtime_.maps().Next(at, mapping); at = mapping.end()) {
    if (mapping.file != file_ || (mapping.flags & kStores) != kStores || !mapping.extent().Overlaps(range)) {
      continue;
    }
    const Quiescence::Section section(own_descriptors().in_use());
    // Looked up again: it may have gone before the section began.
    Mapping now;
    if (!runtime_.maps().Find(mapping.address, now) || now.file != file_) {
      continue;
    }
    const uint64_t first = std::max(now.offset, range.offset) & ~uint64_t{kPageSize - 1};
    const uint64_t past = std::min(now.offset + now.length, range.end());
    if (first >= past) {
      continue;
    }
    const Mapping part =
        now.Clip(now.address + (first - now.offset),
                 now.address + ((past - now.offset + kPageSize - 1) & ~uint64_t{kPageSize - 1}));
    ScanMapping(part, own_descriptors().Number(entry_.backing.load(std::memory_order_acquire)), extents);
  }
}

uint64_t MappedFile::Size() {
  const Quiescence::Section section(own_descriptors().in_use());
  struct stat status;
  const int fd = own_descriptors().Number(entry_.backing.load(std::memory_order_acquire));
  if (fd >= 0 && ::fstat(fd, &status) == 0) {
    return static_cast<uint64_t>(status.st_size);
  }
  return entry_.slot.load(std::memory_order_acquire)->size.load(std::memory_order_acquire);
}

// Ok, or why the daemon does not know of this file what it has to: the attempt is one without a daemon, or, when
// the file has left the volume, one that no daemon will cure.
Error MappedFile::Unserved() const {
  switch (entry_.unserved.load(std::memory_order_acquire)) {
    case 0:
      return Error::Ok();
    case ESTALE:
      return {ESTALE, "the file has left the volume while no daemon was there to keep it for this program"};
    default:
      return {ENOTCONN, "the local daemon does not serve the file"};
  }
}

// Whether a sync that has nothing to send may say so without asking a replica: else what an earlier daemon had
// taken from a program's page table may be on its way only by the comparison of the copies.
bool MappedFile::NothingInDoubt() {
  const VolumePage& page = volume().page();
  return page.unproven.load(std::memory_order_seq_cst) == 0 && MaySucceed(page, LoadSet(page));
}

Error MappedFile::Capture(std::span<const Extent> extents, LocalPersist* local) {
  return runtime_.WithDaemon(volume(), id(), [&] { return CaptureOnce(extents, *this, local, {}); });
}

Error MappedFile::CaptureGroup(std::span<const Extent> extents, LocalPersist* local) {
  return runtime_.WithDaemon(volume(), id(),
                             [&] { return CaptureOnce(extents, *this, local, {.group = true}); });
}

Error MappedFile::CaptureVerified(std::span<const Extent> extents, LocalPersist* local,
                                  VerifyResult& result) {
  // Each attempt is lost only to a newer capture of the same bytes, or to a connection that broke.
  constexpr int kAttempts = 16;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    ChecksummedSource source(*this, extents);
    uint64_t taken = 0;
    PMIRROR_RETURN_IF_ERROR(runtime_.WithDaemon(
        volume(), id(), [&] { return CaptureOnce(extents, source, local, {.taken = &taken}); }));
    const VerifyRequest request{.file = id(), .order = taken, .copied = source.copied()};
    PMIRROR_RETURN_IF_ERROR(runtime_.WithDaemon(volume(), id(), [&] { return VerifyOnce(request, result); }));
    switch (result.verdict) {
      case VerifyResult::Verdict::kEqual:
        return Error::Ok();
      case VerifyResult::Verdict::kDiffers:
        return {EILSEQ, "verify: the replica holds other bytes than were flushed"};
      case VerifyResult::Verdict::kNobody:
        return {EHOSTDOWN, "verify: flushed, but no replica is in sync that could be asked"};
      case VerifyResult::Verdict::kAgain:
        break;
    }
  }
  return {EAGAIN, "verify: flushed, but newer captures of the range came faster than the answers"};
}

Error MappedFile::VerifyOnce(const VerifyRequest& request, VerifyResult& result) {
  const SyncGate::Pass pass(runtime_.gate());
  PMIRROR_RETURN_IF_ERROR(Unserved());
  return volume().Verify(request, result);
}

Error MappedFile::CaptureOnce(std::span<const Extent> extents, ByteSource& source, LocalPersist* local,
                              Manner manner) {
  const SyncGate::Pass pass(runtime_.gate());
  PMIRROR_RETURN_IF_ERROR(Unserved());
  OrderPage* order = entry_.order.load(std::memory_order_acquire);
  const bool can_send = order != nullptr && volume().ready();
  Error result;
  if (extents.empty() && (!can_send || NothingInDoubt())) {
    result = local != nullptr ? local->Persist() : Error::Ok();
  } else if (!can_send) {
    return {EIO, "replicate a file that was mapped for reading only"};
  } else {
    const CaptureTarget target{.file = id(),
                               .order = order,
                               .slot = entry_.slot.load(std::memory_order_acquire),
                               .group = manner.group,
                               .taken = manner.taken};
    result = volume().Replicate(target, extents, source, local);
  }
  // Asked last: a set word that a dead daemon has left asks for nobody whom the next one admits.
  return result.ok() && !runtime_.link().Lives() ? Error{ENOTCONN, "the local daemon is gone"} : result;
}

bool MappedFile::Alone() {
  const SyncGate::Pass pass(runtime_.gate());
  return Unserved().ok() && volume().Alone() && runtime_.link().Lives();  // asked last, as in CaptureOnce
}

bool MappedFile::OnlyTrails() {
  const SyncGate::Pass pass(runtime_.gate());
  const SetWord set = LoadSet(volume().page());
  return entry_.order.load(std::memory_order_acquire) != nullptr && volume().ready() && set.sent_to() == 0 &&
         set.trailing() != 0;
}

bool MappedFile::OthersMayBeDirty() {
  const SyncGate::Pass pass(runtime_.gate());
  const FileSlot* slot = entry_.slot.load(std::memory_order_acquire);
  return (slot->flags.load(std::memory_order_seq_cst) & (kFileShared | kFileDaemonDirty)) != 0;
}

Error MappedFile::SyncOthers(Extent range) {
  return runtime_.WithDaemon(volume(), id(), [&] { return SyncOthersOnce(range, WaitDeadline()); });
}

Error MappedFile::SyncOthersOnce(Extent range, Deadline deadline) {
  const SyncGate::Pass pass(runtime_.gate());
  PMIRROR_RETURN_IF_ERROR(Unserved());
  const Error asked = runtime_.link().AskLong(
      local::RequestKind::kSyncOthers, deadline,
      [&](local::Request& request) {
        request.volume = volume().index();
        request.file = Raw(id());
        request.offset = range.offset;
        request.length = range.length;
        request.wait_ns = static_cast<uint64_t>(deadline.Remaining().count());
      },
      [](DaemonLink::Answer&) { return Error::Ok(); });
  return DaemonLink::IsOfLink(asked) ? Error{ENOTCONN, asked.doing} : asked;
}

bool MappedFile::FindMapping(uint64_t offset, Mapping& found) const {
  const auto fits = [&](const Mapping& m) {
    return m.file == file_ && (m.flags & kMapShared) != 0 && (m.flags & kMapReadable) != 0 &&
           m.offset <= offset && offset < m.offset + m.length;
  };
  if (hint_.offset <= offset && offset < hint_.offset + hint_.length &&
      runtime_.maps().Find(hint_.address + (offset - hint_.offset), found) && fits(found)) {
    return true;
  }
  for (uintptr_t at = 0; runtime_.maps().Next(at, found); at = found.end()) {
    if (fits(found)) {
      return true;
    }
  }
  return false;
}

// Bytes copied; stops where no readable mapping goes on, and at a fault.
size_t MappedFile::CopyFromMapping(Extent extent, std::byte* out) {
  size_t done = 0;
  while (done < extent.length) {
    Mapping mapping;
    const uint64_t offset = extent.offset + done;
    if (!FindMapping(offset, mapping)) {
      break;
    }
    const uintptr_t from = mapping.address + (offset - mapping.offset);
    const size_t length = std::min<size_t>(extent.length - done, mapping.end() - from);
    const size_t copied = pmirror_guarded_copy(out + done, reinterpret_cast<const void*>(from), length);
    done += copied;
    if (copied < length) {
      break;
    }
  }
  return done;
}

Result<size_t> MappedFile::Copy(Extent extent, std::span<std::byte> out) {
  const Quiescence::Section section(own_descriptors().in_use());
  size_t done = 0;
  {
    const SigbusDeliverable deliverable;
    done = CopyFromMapping(extent, out.data());
  }
  // The rest from the descriptor, which tells the end of the file from a bad page.
  while (done < extent.length) {
    const int fd = own_descriptors().Number(entry_.backing.load(std::memory_order_acquire));
    const ssize_t got =
        ::pread(fd, out.data() + done, extent.length - done, static_cast<off_t>(extent.offset + done));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return Error::FromErrno("read the backing file");
    }
    if (got == 0) {
      break;
    }
    done += static_cast<size_t>(got);
  }
  return done;
}

}  // namespace pmirror::interpose
