// SPDX-License-Identifier: BSD-3-Clause
// The hello: who is there, and what has to end for it.
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fs/client_observer.h"
#include "fs/client_registry.h"
#include "fs/proc_status.h"

namespace pmirror::fs {
namespace {

// A page map answers scans of an address space; anything else could make us wait, or lie at will about its owner only.
bool IsOfProc(int fd) {
  struct statfs info {};
  return ::fstatfs(fd, &info) == 0 && info.f_type == PROC_SUPER_MAGIC;
}

// Ordinary shared memory: a huge page may be missing when we touch it.
bool IsSharedMemory(int fd) {
  struct statfs info {};
  return ::fcntl(fd, F_GET_SEALS) >= 0 && ::fstatfs(fd, &info) == 0 && info.f_type == TMPFS_MAGIC;
}

}  // namespace

void ClientRegistry::Hello(Connection& connection, ReceivedRequest& received, ClientReply& reply) {
  if (connection.process != nullptr) {
    Refuse(reply.record, EINVAL, "hello was said on this connection before");
    return;
  }
  if (connection.pid <= 0) {
    Refuse(reply.record, ESRCH,
           "the kernel does not say which process this is: it is in another pid name space");
    return;
  }
  if (received.request.main != 0) {
    MainHello(connection, received, reply);
    return;
  }
  std::shared_ptr<ClientProcess> process = processes_.Find(connection.pid);
  {
    std::lock_guard lock(mutex_);
    connection.process = process;
  }
  if (process == nullptr || process->ended()) {  // looked at after its connections can be found by its end
    std::lock_guard lock(mutex_);
    connection.process.reset();
    Refuse(reply.record, ESRCH, "this process has no main connection: its first one passes a ticket table");
    return;
  }
  FillMounts(reply);
}

void ClientRegistry::MainHello(Connection& connection, ReceivedRequest& received, ClientReply& reply) {
  if (received.descriptors.empty() || !IsSharedMemory(received.descriptors[0].get())) {
    Refuse(reply.record, EINVAL, "a main hello passes a ticket table in a memfd");
    return;
  }
  absl::StatusOr<SharedMemory> tickets =
      SharedMemory::Receive(std::move(received.descriptors[0]), sizeof(TicketTable));
  if (!tickets.ok()) {
    Refuse(reply.record, EINVAL, std::string(tickets.status().message()));
    return;
  }
  UniqueFd pagemap;
  if (received.descriptors.size() > 1) {
    if (!IsOfProc(received.descriptors[1].get())) {
      Refuse(reply.record, EINVAL, "the second descriptor of a main hello is the process's page map");
      return;
    }
    pagemap = std::move(received.descriptors[1]);
  }
  connection.process_fd.Reset(static_cast<int>(::syscall(SYS_pidfd_open, connection.pid, 0)));
  if (!connection.process_fd.valid()) {
    Refuse(reply.record, ESRCH, "the process is over");
    return;
  }
  auto process = std::make_shared<ClientProcess>(
      ClientProcess::Identity{.serial = ProcessSerial{next_serial_.fetch_add(1)},
                              .pid = connection.pid,
                              .uid = connection.uid,
                              .command = CommandOf(connection.pid)},
      std::move(pagemap), *std::move(tickets));
  {
    std::lock_guard lock(mutex_);
    connection.process = process;
    connection.main = true;
  }
  // The program that had this pid before: the process has called exec, or its end has not been noticed yet.
  while (!processes_.Add(process)) {
    if (const std::shared_ptr<ClientProcess> before = processes_.Find(connection.pid)) {
      EndProcess(before);
    }
  }
  FillMounts(reply);
}

// Returns when the observation is over.
void ClientRegistry::Observe(Connection& connection, ClientReply& reply) {
  ClientObserver observer(volumes_);
  if (observer.valid()) {
    FillMounts(reply);
  } else {
    Refuse(reply.record, EMFILE, "the daemon has no descriptor left for an observer");
  }
  if (SendReply(connection.socket.get(), reply.record, reply.descriptors) && observer.valid()) {
    observer.Serve(connection.socket.get());
  }
}

void ClientRegistry::FillMounts(ClientReply& reply) {
  for (const auto& registered : volumes_.All()) {
    const ClientVolume& volume = registered->volume;
    local::Mount& mount = reply.record.mounts[reply.record.mount_count++];
    mount.device = volume.mount_device();
    mount.volume = volume.uuid();
    const size_t length = std::min(volume.name().size(), sizeof(mount.name) - 1);
    std::memcpy(mount.name, volume.name().data(), length);
    reply.descriptors.push_back(volume.page_fd());
  }
}

}  // namespace pmirror::fs
