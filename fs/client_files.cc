// SPDX-License-Identifier: BSD-3-Clause
// kOpenBacking and kCloseBacking: the descriptor that a program passes is the proof of what it may do with the file.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include <endian.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "fs/client_requests.h"
#include "fs/proc_status.h"

namespace pmirror::fs {

using local::Request;

namespace {

struct Identity {
  dev_t device = 0;
  ino_t inode = 0;
  bool regular = false;
};

// Asks nobody's FUSE server, which might never answer: device and inode number are what the kernel has at hand.
bool IdentityOf(int fd, Identity& identity) {
  struct statx info {};
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &info) != 0) {
    return false;
  }
  identity = {.device = ::makedev(info.stx_dev_major, info.stx_dev_minor),
              .inode = info.stx_ino,
              .regular = S_ISREG(info.stx_mode)};
  return true;
}

uint64_t SizeOf(int fd) {
  struct stat info {};
  return ::fstat(fd, &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
}

}  // namespace

FileId StoredId(int fd) {
  uint64_t raw = 0;
  return ::fgetxattr(fd, kIdXattr, &raw, sizeof(raw)) == sizeof(raw) ? FileId{le64toh(raw)} : FileId::kNone;
}

std::optional<ClientRequests::Proof> ClientRequests::ProofOf(const ReceivedRequest& received,
                                                             ClientReply& reply) {
  if (received.descriptors.size() != 1) {
    Refuse(reply.record, EBADF, "to open a backing file, pass one descriptor of the file");
    return std::nullopt;
  }
  const int fd = received.descriptors[0].get();
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_PATH) != 0) {
    Refuse(reply.record, EBADF, "a descriptor of kind O_PATH gives no right to a file's bytes");
    return std::nullopt;
  }
  if ((flags & O_ACCMODE) != O_RDONLY && (flags & O_ACCMODE) != O_RDWR) {
    Refuse(reply.record, EACCES, "a mapping needs a descriptor that is open for reading");
    return std::nullopt;
  }
  Identity identity;
  if (!IdentityOf(fd, identity)) {
    Refuse(reply.record, EBADF, "the descriptor cannot be looked at");
    return std::nullopt;
  }
  Proof proof;
  proof.writable = (flags & O_ACCMODE) == O_RDWR;
  for (size_t index = 0; index < volumes_.size() && proof.key.id == FileId::kNone; ++index) {
    if (identity.device == volumes_[index].volume.mount_device()) {
      proof.key = {index, FileId{identity.inode}};
    }
  }
  if (proof.key.id == FileId::kNone &&
      identity.device == volumes_[received.request.volume].volume.backing_device()) {
    const FileId id = StoredId(fd);
    if (received.request.file == 0 || received.request.file == Raw(id)) {
      proof.key = {received.request.volume, id};
      proof.of_backing = true;
      proof.backing_fd = fd;
      proof.inode = identity.inode;
    }
  }
  if (proof.key.id == FileId::kNone) {
    Refuse(reply.record, ENODEV, "the descriptor is of no file of a mounted volume");
    return std::nullopt;
  }
  if (!identity.regular) {
    Refuse(reply.record, ENODEV, "only regular files have a backing file to map");
    return std::nullopt;
  }
  return proof;
}

void ClientRequests::RefuseLease(const Process& process, const FileKey& key,
                                 const FileSystem::DirectAnswer& answer, ClientReply& reply) {
  reply.record.holder = answer.holder;
  if (answer.error == EBUSY && answer.holder != 0) {
    const std::string holder = std::to_string(answer.holder) + " (" + CommandOf(answer.holder) + ")";
    Refuse(
        reply.record, EBUSY,
        "process " + holder + " has the file open without pmirror: end it, or start it with 'pmirror run'");
  } else if (answer.error == EBUSY) {
    Refuse(reply.record, EBUSY,
           "the kernel itself has the file open: a swap file, a loop device or the like");
  } else if (answer.error == ESTALE) {
    Refuse(reply.record, ESTALE, "the file is gone from the volume");
  } else {
    char text[64];
    Refuse(
        reply.record, answer.error,
        std::string("the backing file cannot be opened: ") + ::strerror_r(answer.error, text, sizeof(text)));
  }
  events_.Report(Severity::kWarning, "program_not_served",
                 {{"volume", volumes_[key.volume].volume.name()},
                  {"process", process->name()},
                  {"file", std::to_string(Raw(key.id))},
                  {"errno", std::to_string(answer.error)},
                  {"reason", reply.record.text}});
}

// What the process has of the file already, when that is enough; else a new lease, which takes the place of one that was only for reading.
std::shared_ptr<LeasedFile> ClientRequests::LeaseFor(const Process& process, const Proof& proof,
                                                     ClientReply& reply, Leases& let_go) {
  size_t count = 0;
  std::shared_ptr<LeasedFile> file;
  {
    const ClientProcess::View files = process->Look();
    count = files->leases.size();
    const auto found = files->leases.find(proof.key);
    if (found != files->leases.end() && (found->second->writable || !proof.writable)) {
      file = found->second;
    }
  }
  const bool fresh = file == nullptr;
  if (fresh && count >= kMaxLeases) {
    Refuse(reply.record, ENFILE, "this process has too many files of volumes mapped: unmap some");
    return nullptr;
  }
  if (fresh) {
    FileSystem& file_system = volumes_[proof.key.volume].volume.file_system();
    FileSystem::DirectAnswer answer = file_system.AcquireDirect(
        proof.key.id, proof.writable, Deadline::After(kCloseUnderWay), proof.backing_fd);
    if (answer.lease.has_value() && answer.lease->file() == nullptr) {
      answer.error = ESTALE;  // removed, and nobody had it open: no replica knows it
    }
    if (answer.error != 0) {
      RefuseLease(process, proof.key, answer, reply);
      return nullptr;
    }
    file = std::make_shared<LeasedFile>(*std::move(answer.lease), proof.writable);
  }
  Identity given;
  if (proof.of_backing && (!IdentityOf(file->descriptor.get(), given) || given.inode != proof.inode)) {
    // A file that carries the id of another: one of another volume on this file system, or a copy.
    Refuse(reply.record, ENODEV, "the descriptor is of no file of this volume");
    let_go.push_back(std::move(file));
    return nullptr;
  }
  if (fresh) {
    const ClientProcess::Edit files = process->Change();
    std::shared_ptr<LeasedFile>& place = files->leases[proof.key];
    if (place != nullptr) {
      let_go.push_back(std::move(place));
    }
    place = file;
  }
  return file;
}

// A session that cannot be given the right now is cut: the program comes back for it (kOpenSession), which gives all rights before it answers.
void ClientRequests::GrantToSessions(const Process& process, const FileKey& key) {
  ClientVolume& volume = volumes_[key.volume].volume;
  const Deadline deadline = Deadline::After(kGrantPatience);
  for (const ClientProcess::SessionName& session : process->SessionsOf(key.volume)) {
    const int error = volume.Grant(session.replica, session.id, key.id, deadline);
    if (error != 0) {
      process->CutSession(key.volume, session.replica, session.id);
      events_.Report(Severity::kWarning, "session_cut",
                     {{"volume", volume.name()},
                      {"process", process->name()},
                      {"file", std::to_string(Raw(key.id))},
                      {"reason", "its replica was not told of a file it may write"},
                      {"errno", std::to_string(error)}});
    }
  }
}

void ClientRequests::OpenBacking(const Process& process, ReceivedRequest& received, ClientReply& reply,
                                 Leases& let_go) {
  const std::optional<Proof> proof = ProofOf(received, reply);
  if (!proof) {
    return;
  }
  const std::shared_ptr<LeasedFile> before = process->Look()->Find(proof->key);
  std::shared_ptr<LeasedFile> file = LeaseFor(process, *proof, reply, let_go);
  if (file == nullptr) {
    return;
  }
  if (file->writable && (before == nullptr || !before->writable)) {
    GrantToSessions(process, proof->key);
  }
  int given = file->descriptor.get();
  if (file->writable && !proof->writable) {  // this descriptor may not be more than the one that was passed
    reply.owned.Reset(::open(ProcPath(given).c_str(), O_RDONLY | O_CLOEXEC));
    given = reply.owned.get();
    if (given < 0) {
      Refuse(reply.record, errno, "the backing file cannot be opened for reading");
      return;
    }
  }
  const ClientVolume::SharedParts parts = volumes_[proof->key.volume].volume.PartsOf(*file->lease.file());
  reply.record.volume = static_cast<uint32_t>(proof->key.volume);
  reply.record.file = Raw(proof->key.id);
  reply.record.slot = parts.slot;
  reply.record.size = SizeOf(given);
  reply.record.writable = proof->writable ? 1 : 0;
  reply.descriptors.push_back(given);
  if (proof->writable) {
    reply.descriptors.push_back(parts.order_fd);
  }
  reply.lease = std::move(file);
}

void ClientRequests::CloseBacking(const Process& process, const Request& request, ClientReply& reply,
                                  Leases& let_go) {
  const FileKey key{request.volume, FileId{request.file}};
  std::shared_ptr<LeasedFile> file;
  {
    const ClientProcess::View files = process->Look();
    const auto found = files->leases.find(key);
    file = found == files->leases.end() ? nullptr : found->second;
  }
  if (file == nullptr) {
    Refuse(reply.record, EINVAL,
           "this process has no backing descriptor of file " + std::to_string(request.file));
    return;
  }
  let_go.push_back(file);
  if (file->writable) {
    HoldTickets(*process, key, *file);  // without a lease nobody asks for them any more
  }
  process->Change()->leases.erase(key);
}

}  // namespace pmirror::fs
