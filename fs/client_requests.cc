// SPDX-License-Identifier: BSD-3-Clause
// Which request is what, the requests that only wait for the volume, and the end of a process.
#include "fs/client_requests.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fs/ticket_reader.h"

namespace pmirror::fs {

using local::Request;
using local::RequestKind;

namespace {

std::string ErrnoText(int error) {
  char text[64];
  return ::strerror_r(error, text, sizeof(text));
}

bool IsShort(RequestKind kind) {
  return kind == RequestKind::kOpenBacking || kind == RequestKind::kMapped ||
         kind == RequestKind::kUnmapped || kind == RequestKind::kCloseBacking ||
         kind == RequestKind::kRejoined;
}

}  // namespace

Deadline WaitOf(const Request& request) {
  const std::chrono::nanoseconds longest = ClientRequests::kLongestWait;
  const auto wait = std::min(request.wait_ns, static_cast<uint64_t>(longest.count()));
  return Deadline::After(std::chrono::nanoseconds(static_cast<int64_t>(wait)));
}

void ClientRequests::Answer(const Process& process, bool main, ReceivedRequest& received,
                            ClientReply& reply) {
  const Request& request = received.request;
  reply.record.volume = request.volume;
  if (request.volume >= volumes_.size()) {
    Refuse(reply.record, EINVAL, "this daemon has no volume number " + std::to_string(request.volume));
  } else if (!IsShort(request.kind)) {
    AnswerLong(process, request, reply);
  } else if (!main) {
    Refuse(reply.record, EINVAL, "files and mappings are told over the process's main connection");
  } else {
    AnswerShort(process, received, reply);
  }
}

void ClientRequests::AnswerShort(const Process& process, ReceivedRequest& received, ClientReply& reply) {
  Leases let_go;
  const std::lock_guard work(process->work_mutex());
  if (process->ended()) {
    Refuse(reply.record, ESRCH, "another program has taken this process's place");
    return;
  }
  switch (received.request.kind) {
    case RequestKind::kOpenBacking:
      return OpenBacking(process, received, reply, let_go);
    case RequestKind::kMapped:
      return Mapped(process, received.request, reply, let_go);
    case RequestKind::kUnmapped:
      return Unmapped(process, received.request, reply, let_go);
    case RequestKind::kRejoined:
      return Rejoined(process);
    default:
      return CloseBacking(process, received.request, reply, let_go);
  }
}

void ClientRequests::AnswerLong(const Process& process, const Request& request, ClientReply& reply) {
  switch (request.kind) {
    case RequestKind::kOpenSession:
      return OpenSession(process, request, reply);
    case RequestKind::kSyncOthers:
      return SyncOthers(process, request, reply);
    case RequestKind::kSyncVolume:
      return SyncVolume(process, request, reply);
    case RequestKind::kOpenLog:
      return OpenLog(process, request, reply);
    case RequestKind::kAwaitClose:
      return AwaitClose(request, reply);
    case RequestKind::kReport:
      return Report(process, request, reply);
    default:
      Refuse(reply.record, EINVAL,
             "this daemon knows no request of kind " + std::to_string(static_cast<uint32_t>(request.kind)));
  }
}

void ClientRequests::OpenLog(const Process& process, const Request& request, ClientReply& reply) {
  const std::lock_guard work(process->work_mutex());  // its end closes what is there then
  if (process->ended()) {
    Refuse(reply.record, ESRCH, "the process has ended");
    return;
  }
  const absl::StatusOr<ClientVolume::CaptureLogParts> parts =
      volumes_[request.volume].volume.OpenCaptureLog(process->serial());
  if (!parts.ok()) {
    Refuse(reply.record, absl::IsNotFound(parts.status()) ? ENOENT : ENOMEM,
           std::string(parts.status().message()));
    return;
  }
  // Its own: the log may end before the reply is sent.
  reply.owned.Reset(::fcntl(parts->log_fd, F_DUPFD_CLOEXEC, 0));
  if (!reply.owned.valid()) {
    Refuse(reply.record, errno, "the capture log's descriptor cannot be duplicated");
    return;
  }
  reply.descriptors = {reply.owned.get(), parts->clock_fd};
}

void ClientRequests::SyncOthers(const Process& process, const Request& request, ClientReply& reply) {
  std::shared_ptr<ReplicatedFile> file;
  {
    const ClientProcess::View files = process->Look();
    const std::shared_ptr<LeasedFile> lease = files->Find({request.volume, FileId{request.file}});
    file = lease == nullptr ? nullptr : lease->lease.file();
  }
  if (file == nullptr) {
    Refuse(reply.record, EINVAL,
           "this process has no backing descriptor of file " + std::to_string(request.file));
    return;
  }
  const Extent range =
      request.length == 0 ? Extent{0, kMaxFileBytes} : SaneExtent(request.offset, request.length);
  const int error =
      volumes_[request.volume].volume.SyncOthers(file, range, process->serial(), WaitOf(request));
  if (error != 0) {
    Refuse(reply.record, error, "what other processes stored could not be replicated: " + ErrnoText(error));
  }
}

void ClientRequests::SyncVolume(const Process& process, const Request& request, ClientReply& reply) {
  const int error = volumes_[request.volume].volume.SyncAll(process->serial(), WaitOf(request));
  if (error != 0) {
    Refuse(reply.record, error, "the volume could not be replicated: " + ErrnoText(error));
  }
}

void ClientRequests::AwaitClose(const Request& request, ClientReply& reply) {
  const auto wait = std::min<Deadline::Duration>(WaitOf(request).Remaining(), kAwaitCloseSlice);
  const int error = volumes_[request.volume].volume.file_system().AwaitPlainClosed(FileId{request.file},
                                                                                   Deadline::After(wait));
  if (error != 0) {
    Refuse(reply.record, error, "a program without pmirror still has the file open");
  }
}

void ClientRequests::Report(const Process& process, const Request& request, ClientReply& reply) {
  if (request.report < static_cast<uint32_t>(local::ReportKind::kSuspended) ||
      request.report > static_cast<uint32_t>(local::ReportKind::kSynced)) {
    Refuse(reply.record, EINVAL, "this daemon knows no report of kind " + std::to_string(request.report));
    return;
  }
  const auto kind = static_cast<local::ReportKind>(request.report);
  const FileKey file{request.volume, FileId{request.file}};
  // A suspended sync is said to go on exactly once, by the program or at its end: killed, it says nothing more.
  if ((kind == local::ReportKind::kSuspended && !process->Suspended(file)) ||
      (kind == local::ReportKind::kResumed && !process->Resumed(file))) {
    return;
  }
  volumes_[request.volume].volume.Report(process->pid(), kind, file.id, request.value);
}

bool ClientRequests::End(const Process& process, Dirt dirt) {
  Leases let_go;
  const std::lock_guard work(process->work_mutex());
  if (process->ended()) {
    return false;
  }
  process->SetEnded();
  // What it may owe is the volumes' before it is not the process's any more: a dirty byte is at no instant nobody's.
  std::vector<ClientMapping> mappings;
  std::map<FileKey, std::shared_ptr<LeasedFile>> writable;
  {
    const ClientProcess::View files = process->Look();
    mappings = files->mappings.Within(0, UINTPTR_MAX);
    writable = files->Writable();
  }
  if (dirt == Dirt::kHeld && std::any_of(mappings.begin(), mappings.end(),
                                         [](const ClientMapping& part) { return part.writable; })) {
    events_.Report(Severity::kInfo, "program_ended_mapped",
                   {{"process", process->name()}, {"mappings", std::to_string(mappings.size())}});
  }
  if (dirt == Dirt::kHeld) {
    HoldWritable(mappings);
    for (const auto& [key, file] : writable) {
      HoldTickets(*process, key, *file);
    }
  }
  RemoveMappings(process, 0, UINTPTR_MAX, let_go);
  {
    const ClientProcess::Edit files = process->Change();
    for (auto& [key, lease] : files->leases) {
      let_go.push_back(std::move(lease));
    }
    files->leases.clear();
  }
  processes_.Remove(process);
  for (const FileKey& file : process->TakeSuspended()) {
    volumes_[file.volume].volume.Report(process->pid(), local::ReportKind::kResumed, file.id, 0);
  }
  for (const ClientSession& session : process->TakeSessions()) {
    EndSession(session);
  }
  for (size_t volume = 0; volume < volumes_.size(); ++volume) {
    volumes_[volume].volume.CloseCaptureLog(process->serial());
  }
  return true;
}

}  // namespace pmirror::fs
