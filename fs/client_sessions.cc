// SPDX-License-Identifier: BSD-3-Clause
// kOpenSession: a program's connection to a replica, with the right to write each file that the program may write.
#include <fcntl.h>

#include <cerrno>
#include <utility>

#include "fs/client_requests.h"

namespace pmirror::fs {

using local::Request;

void ClientRequests::EndSession(const ClientSession& session) {
  session.Cut();
  volumes_[session.volume].volume.EndSession(session.replica, session.id);
}

void ClientRequests::OpenSession(const Process& process, const Request& request, ClientReply& reply) {
  ClientVolume& volume = volumes_[request.volume].volume;
  const SessionId asked{request.session};
  if (request.replica >= volume.replica_count()) {
    Refuse(reply.record, EINVAL,
           "volume " + volume.name() + " has no replica number " + std::to_string(request.replica));
    return;
  }
  if (asked != SessionId{} && !process->HasSession(request.volume, request.replica, asked)) {
    Refuse(reply.record, EPERM, "a session can be resumed only by the process that has it");
    return;
  }
  const Deadline deadline = WaitOf(request);
  Result<Connector::Connection> opened =
      volume.OpenSession(request.replica, process->name(), asked, request.next_sequence, deadline);
  if (!opened.ok()) {
    Refuse(reply.record, opened.error().code,
           "no connection to a replica of volume " + volume.name() + ": " + opened.error().doing);
    return;
  }
  Connector::Connection& connection = opened.value();
  UniqueFd duplicate(::fcntl(connection.socket.get(), F_DUPFD_CLOEXEC, 0));
  if (!duplicate.valid()) {
    Refuse(reply.record, errno, "a session's socket cannot be duplicated");
    volume.EndSession(request.replica, connection.session);
    return;
  }
  // Known first, then the files: a file that is opened meanwhile finds the session.
  const std::optional<ClientSession> spare = process->KeepSession({.volume = request.volume,
                                                                   .replica = request.replica,
                                                                   .id = connection.session,
                                                                   .socket = std::move(duplicate)},
                                                                  asked);
  if (spare.has_value()) {
    EndSession(*spare);
    if (spare->id == connection.session) {
      Refuse(reply.record, ESRCH, "the process has ended");
      return;
    }
  }
  std::vector<FileId> may_write;
  for (const auto& [key, file] : process->Look()->Writable()) {
    if (key.volume == request.volume) {
      may_write.push_back(key.id);
    }
  }
  for (const FileId id : may_write) {
    const int error = volume.Grant(request.replica, connection.session, id, deadline);
    if (error != 0) {
      Refuse(reply.record, error, "the replica was not told of file " + std::to_string(Raw(id)));
      if (asked == SessionId{}) {  // the program has never heard of it
        if (const auto dropped = process->DropSession(request.volume, request.replica, connection.session)) {
          EndSession(*dropped);
        }
      } else {
        process->CutSession(request.volume, request.replica, connection.session);
      }
      return;
    }
  }
  reply.record.session = Raw(connection.session);
  reply.record.received_sequence = connection.resumed.received_sequence;
  reply.record.durable_sequence = connection.resumed.durable_sequence;
  reply.record.credit_limit = connection.resumed.credit_limit;
  reply.owned = std::move(connection.socket);
  reply.descriptors.push_back(reply.owned.get());
}

}  // namespace pmirror::fs
