// SPDX-License-Identifier: BSD-3-Clause
// Programs of an earlier daemon: known from the start as far as their page tables and tickets tell, until they say hello themselves.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <utility>

#include "fs/client_requests.h"
#include "fs/proc_status.h"
#include "replication/volume_page.h"

namespace pmirror::fs {
namespace {

// How the volume's programs track their stores: its page says so, to us as to them.
Tracking TrackingOf(const ClientVolume& volume) {
  uint32_t tracking = 0;
  const bool read = ::pread(volume.page_fd(), &tracking, sizeof(tracking), offsetof(VolumePage, tracking)) ==
                    static_cast<ssize_t>(sizeof(tracking));
  return read ? static_cast<Tracking>(tracking) : Tracking::kNone;
}

}  // namespace

// Null when no volume has the file in its tree.
std::shared_ptr<LeasedFile> ClientRequests::LeaseFound(const FoundMapping& mapping, FileKey& key,
                                                       int& error) {
  struct stat info {};
  if (::fstat(mapping.file.get(), &info) != 0) {
    return nullptr;
  }
  for (key.volume = 0; key.volume < volumes_.size(); ++key.volume) {
    ClientVolume& volume = volumes_[key.volume].volume;
    key.id = volume.backing_device() == info.st_dev ? StoredId(mapping.file.get()) : FileId::kNone;
    if (key.id == FileId::kNone) {
      continue;
    }
    FileSystem::DirectAnswer answer = volume.file_system().AcquireDirect(
        key.id, mapping.writable, Deadline::After(kCloseUnderWay), mapping.file.get());
    if (!answer.lease.has_value()) {
      error = answer.error;
      continue;
    }
    auto file = std::make_shared<LeasedFile>(*std::move(answer.lease), mapping.writable);
    struct stat given {};
    if (file->lease.file() != nullptr && ::fstat(file->descriptor.get(), &given) == 0 &&
        given.st_ino == info.st_ino) {
      return file;
    }
  }
  return nullptr;
}

std::shared_ptr<ClientProcess> ClientRequests::Adopt(FoundProgram& found, ProcessSerial serial) {
  absl::StatusOr<SharedMemory> tickets = SharedMemory::Receive(std::move(found.tickets), sizeof(TicketTable));
  if (!tickets.ok()) {  // then nothing is known of what its scans have made to look clean
    tickets = SharedMemory::Create("pmirror-no-tickets", sizeof(TicketTable), Receivers::kReadOnly);
    found.pagemap.Reset();
  }
  if (!tickets.ok()) {
    return nullptr;
  }
  auto process = std::make_shared<ClientProcess>(ClientProcess::Identity{.serial = serial,
                                                                         .pid = found.pid,
                                                                         .uid = found.uid,
                                                                         .command = CommandOf(found.pid),
                                                                         .adopted = true},
                                                 std::move(found.pagemap), *std::move(tickets));
  const std::lock_guard work(process->work_mutex());
  size_t writable = 0;
  for (const FoundMapping& mapping : found.mappings) {
    FileKey key;
    int error = ESTALE;
    std::shared_ptr<LeasedFile> file = LeaseFound(mapping, key, error);
    if (file == nullptr) {
      if (error !=
          ESTALE) {  // of no volume of ours, or out of its tree: its own syncs will fail, and nobody else can have it
        events_.Report(Severity::kError, "program_not_adopted",
                       {{"process", process->name()},
                        {"file", std::to_string(Raw(StoredId(mapping.file.get())))},
                        {"errno", std::to_string(error)}});
      }
      continue;
    }
    writable += mapping.writable ? 1 : 0;
    if (mapping.writable && !process->Look()->mappings.MapsWritable(key)) {
      volumes_[key.volume].mappers.Add(*file->lease.file());
    }
    const Tracking tracking = TrackingOf(volumes_[key.volume].volume);
    const ClientProcess::Edit files = process->Change();
    std::shared_ptr<LeasedFile>& lease = files->leases[key];
    if (lease == nullptr || (file->writable && !lease->writable)) {
      lease = file;
    }
    files->mappings.Add({.address = mapping.address,
                         .length = mapping.length,
                         .offset = mapping.offset,
                         .writable = mapping.writable,
                         .tracking = tracking,
                         .key = key,
                         .file = std::move(file)});
  }
  if (process->Look()->mappings.size() == 0) {
    return nullptr;
  }
  if (!processes_.Add(process)) {
    return nullptr;
  }
  events_.Report(Severity::kInfo, "program_adopted",
                 {{"process", process->name()},
                  {"mappings", std::to_string(process->Look()->mappings.size())},
                  {"writable", std::to_string(writable)}});
  return process;
}

// Its own main connection has told of all that it maps: whatever it has stored shows in the same page table and the same tickets.
void ClientRequests::Rejoined(const Process& process) {
  if (const Process adopted = processes_.FindAdopted(process->pid()); adopted != nullptr) {
    static_cast<void>(End(adopted, Dirt::kKnownElsewhere));
  }
}

}  // namespace pmirror::fs
