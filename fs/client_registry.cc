// SPDX-License-Identifier: BSD-3-Clause
// Connections and their threads. See client_registry.h; what requests mean is in client_requests.h.
#include "fs/client_registry.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "fs/proc_status.h"

namespace pmirror::fs {
namespace {

constexpr size_t kMaxRefused = 64;   // refused connections that are kept open for a while
constexpr time_t kReplySeconds = 5;  // a program that takes no reply for so long loses its connection

constexpr int kAdoptedSliceMs =
    500;  // between looks at the address spaces of programs that have not said hello

}  // namespace

ClientRegistry::ClientRegistry(EventSink& events, size_t max_connections)
    : events_(events), max_connections_(max_connections), requests_(volumes_, processes_, events) {}

ClientRegistry::~ClientRegistry() { Stop(); }

absl::StatusOr<size_t> ClientRegistry::Add(ClientVolume& volume) {
  if (volumes_.size() == local::kMaxVolumes) {
    return absl::ResourceExhaustedError(absl::StrCat("a node mounts at most ", local::kMaxVolumes,
                                                     " volumes: unmount one before ", volume.name()));
  }
  const size_t index = volumes_.size();
  auto registered = std::make_unique<RegisteredVolume>(volume, processes_, index);
  volume.UseForeignStores(registered->stores);
  volumes_.Add(std::move(registered));
  return index;
}

ForeignStores& ClientRegistry::StoresOf(size_t volume) { return volumes_[volume].stores; }

size_t ClientRegistry::MappingProcesses(size_t volume) const {
  const auto all = processes_.All();
  return static_cast<size_t>(std::count_if(all.begin(), all.end(), [volume](const auto& process) {
    return process->Look()->mappings.MapsAnyOf(volume);
  }));
}

size_t ClientRegistry::WritingProcesses(size_t volume) const {
  const auto all = processes_.All();
  return static_cast<size_t>(std::count_if(all.begin(), all.end(), [volume](const auto& process) {
    const auto writable = process->Look()->Writable();
    return std::any_of(writable.begin(), writable.end(),
                       [volume](const auto& entry) { return entry.first.volume == volume; });
  }));
}

absl::Status ClientRegistry::Start(const std::string& socket_path) {
  if (listener_.has_value()) {
    return absl::FailedPreconditionError("programs are served already");
  }
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) {
    return absl::ErrnoToStatus(errno, "make an eventfd");
  }
  absl::StatusOr<LocalListener> listener = LocalListener::Open(socket_path);
  if (!listener.ok()) {
    return listener.status();
  }
  stopping_ = false;
  wake_ = std::move(wake);
  listener_.emplace(*std::move(listener));
  AdoptPrograms();  // nobody is served before
  acceptor_ = std::thread([this] { Accept(); });
  return absl::OkStatus();
}

void ClientRegistry::Stop() {
  if (!listener_.has_value()) {
    return;
  }
  stopping_ = true;
  ::eventfd_write(wake_.get(), 1);
  acceptor_.join();
  if (watcher_.joinable()) {
    ::eventfd_write(adopted_wake_.get(), 1);
    watcher_.join();
  }
  for (const Adopted& adopted : std::exchange(adopted_, {})) {
    EndProcess(adopted.process);
  }
  listener_.reset();
  refused_.clear();
  {
    std::lock_guard lock(mutex_);
    for (const Connection& connection : connections_) {
      ::shutdown(connection.socket.get(), SHUT_RDWR);
    }
  }
  // Nobody adds or takes connections any more but this thread.
  for (Connection& connection : connections_) {
    connection.thread.join();
  }
  connections_.clear();
}

void ClientRegistry::Accept() {
  while (!stopping_) {
    pollfd polls[] = {{.fd = listener_->fd(), .events = POLLIN, .revents = 0},
                      {.fd = wake_.get(), .events = POLLIN, .revents = 0}};
    ::poll(polls, std::size(polls), -1);
    eventfd_t ignored = 0;
    ::eventfd_read(wake_.get(), &ignored);
    Reap();
    if (stopping_ || (polls[0].revents & POLLIN) == 0) {
      continue;
    }
    UniqueFd socket(::accept4(listener_->fd(), nullptr, nullptr, SOCK_CLOEXEC));
    if (socket.valid()) {
      Admit(std::move(socket));
    } else if (errno != EINTR && errno != ECONNABORTED) {
      // No descriptor or no memory left: what waits is accepted when a connection has ended, or after a while.
      events_.Report(Severity::kError, "program_not_accepted", {{"errno", std::to_string(errno)}});
      pollfd ended{.fd = wake_.get(), .events = POLLIN, .revents = 0};
      ::poll(&ended, 1, 100);
    }
  }
}

void ClientRegistry::Admit(UniqueFd socket) {
  const timeval patience{.tv_sec = kReplySeconds, .tv_usec = 0};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  std::lock_guard lock(mutex_);
  if (connections_.size() >= max_connections_) {
    RefuseConnection(std::move(socket));
    return;
  }
  Connection& connection = connections_.emplace_back();
  connection.socket = std::move(socket);
  ucred peer{};
  socklen_t length = sizeof(peer);
  if (::getsockopt(connection.socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0) {
    connection.pid = peer.pid;
    connection.uid = peer.uid;
  }
  try {
    connection.thread = std::thread([this, &connection] { Serve(connection); });
  } catch (const std::system_error&) {  // the system's limit of threads is below ours
    socket = std::move(connection.socket);
    connections_.pop_back();
    RefuseConnection(std::move(socket));
  }
}

void ClientRegistry::RefuseConnection(UniqueFd socket) {
  local::Reply reply;
  Refuse(reply, EAGAIN, "too many programs are connected to this daemon: end some, then try again");
  SendReply(socket.get(), reply, {});
  // The program sends its request before it reads this: closed now, it would only learn that nobody is there.
  refused_.push_back(std::move(socket));
  if (refused_.size() > kMaxRefused) {
    refused_.pop_front();
  }
}

void ClientRegistry::Reap() {
  std::list<Connection> done;
  {
    std::lock_guard lock(mutex_);
    for (auto at = connections_.begin(); at != connections_.end();) {
      const auto next = std::next(at);
      if (at->done) {
        done.splice(done.end(), connections_, at);
      }
      at = next;
    }
  }
  for (Connection& connection : done) {
    connection.thread.join();
  }
}

void ClientRegistry::Serve(Connection& connection) {
  while (AnswerNext(connection)) {
  }
  std::shared_ptr<ClientProcess> process;
  bool main = false;
  {
    std::lock_guard lock(mutex_);
    process = connection.process;
    main = connection.main;
  }
  if (main) {
    EndProcess(process);
  }
  std::lock_guard lock(mutex_);
  connection.process.reset();
  connection.socket.Reset();
  connection.done = true;
  ::eventfd_write(wake_.get(), 1);
}

bool ClientRegistry::AnswerNext(Connection& connection) {
  // A child that inherited the main connection behind our back may hold it open after its process is over.
  pollfd polls[] = {{.fd = connection.socket.get(), .events = POLLIN, .revents = 0},
                    {.fd = connection.process_fd.get(), .events = POLLIN, .revents = 0}};
  while (::poll(polls, connection.process_fd.valid() ? 2 : 1, -1) < 0 && errno == EINTR) {
  }
  if (polls[0].revents == 0) {
    return false;
  }
  ReceivedRequest received;
  std::string fault;
  const RecordOutcome outcome = ReceiveRequest(connection.socket.get(), received, fault);
  if (outcome != RecordOutcome::kRequest) {
    if (outcome == RecordOutcome::kFault) {
      Log(Severity::kWarning, "program_connection_closed", connection, fault);
    }
    return false;
  }
  ClientReply reply;
  if (received.request.kind == local::RequestKind::kObserve && connection.process == nullptr) {
    Observe(connection, reply);
    return false;
  }
  if (received.request.kind == local::RequestKind::kHello) {
    Hello(connection, received, reply);
  } else if (connection.process == nullptr) {
    Refuse(reply.record, EPROTO, "the first request on a connection is a hello");
  } else {
    requests_.Answer(connection.process, connection.main, received, reply);
  }
  return SendReply(
      connection.socket.get(), reply.record,
      reply.record.error == 0 ? std::span<const int>(reply.descriptors) : std::span<const int>());
}

void ClientRegistry::EndProcess(const std::shared_ptr<ClientProcess>& process) {
  if (!requests_.End(process)) {
    return;
  }
  std::lock_guard lock(mutex_);
  for (const Connection& connection : connections_) {
    if (connection.process == process) {
      ::shutdown(connection.socket.get(), SHUT_RDWR);
    }
  }
}

void ClientRegistry::AdoptPrograms() {
  std::vector<FoundProgram> programs;
  if (!volumes_.empty()) {
    programs = FindPrograms([this](dev_t device) {
      const auto volumes = volumes_.All();
      return std::any_of(volumes.begin(), volumes.end(), [device](const auto& registered) {
        return registered->volume.backing_device() == device;
      });
    });
  }
  for (FoundProgram& program : programs) {
    const uintptr_t address = program.mappings.front().address;
    if (auto process = requests_.Adopt(program, ProcessSerial{next_serial_.fetch_add(1)})) {
      adopted_.push_back({std::move(process), std::move(program.process), address});
    }
  }
  if (!adopted_.empty()) {
    adopted_wake_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    watcher_ = std::thread([this] { WatchAdopted(); });
  }
}

// A program that is over is told by the kernel; one that has called exec, only by its address space, which is asked for now and then.
void ClientRegistry::WatchAdopted() {
  while (!adopted_.empty() && !stopping_) {
    std::vector<pollfd> polls{{.fd = adopted_wake_.get(), .events = POLLIN, .revents = 0}};
    for (const Adopted& adopted : adopted_) {
      polls.push_back({.fd = adopted.process_fd.get(), .events = POLLIN, .revents = 0});
    }
    ::poll(polls.data(), polls.size(), kAdoptedSliceMs);
    std::erase_if(adopted_, [](const Adopted& adopted) { return adopted.process->ended(); });
    for (const Adopted& adopted : adopted_) {
      pollfd over{.fd = adopted.process_fd.get(), .events = POLLIN, .revents = 0};
      const int pagemap = adopted.process->pagemap();
      if (::poll(&over, 1, 0) == 1 || (pagemap >= 0 && !AddressSpaceLives(pagemap, adopted.address))) {
        EndProcess(adopted.process);
      }
    }
  }
}

void ClientRegistry::Log(Severity severity, const char* event, const Connection& connection,
                         const std::string& detail) {
  events_.Report(severity, event,
                 {{"pid", std::to_string(connection.pid)},
                  {"command", CommandOf(connection.pid)},
                  {"uid", std::to_string(connection.uid)},
                  {"detail", detail}});
}

}  // namespace pmirror::fs
