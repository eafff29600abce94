// SPDX-License-Identifier: BSD-3-Clause
// The listener of the data plane. See data_listener.h.
#include "server/data_listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>
#include <csignal>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace pmirror::server {
namespace {

constexpr int kBacklog = 128;

struct HostPort {
  std::string host;
  std::string port;
};

std::optional<HostPort> Split(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon + 1 == address.size()) {
    return std::nullopt;
  }
  HostPort parts{address.substr(0, colon), address.substr(colon + 1)};
  if (parts.host.size() >= 2 && parts.host.front() == '[' && parts.host.back() == ']') {
    parts.host = parts.host.substr(1, parts.host.size() - 2);
  } else if (parts.host.find(':') != std::string::npos) {
    return std::nullopt;  // an IPv6 address without its brackets
  }
  return parts.host.empty() ? std::nullopt : std::optional(parts);
}

std::string Text(const sockaddr_storage& address, socklen_t length) {
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (::getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "unknown";
  }
  return address.ss_family == AF_INET6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

void Set(int socket, int level, int name, int value) {
  ::setsockopt(socket, level, name, &value, sizeof value);  // what cannot be set costs time, not correctness
}

void BlockSignals() {
  sigset_t all;
  ::sigfillset(&all);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) {
    ::sigdelset(&all, fault);
  }
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DataListener>> DataListener::Start(Options options,
                                                                  std::vector<ReplicaVolume*> volumes) {
  if (options.addresses.empty()) {
    return absl::InvalidArgumentError("no address to take data connections on");
  }
  std::unique_ptr<DataListener> listener(new DataListener(std::move(options), std::move(volumes)));
  for (const std::string& address : listener->options_.addresses) {
    if (const absl::Status status = listener->Listen(address); !status.ok()) {
      return status;
    }
  }
  listener->wake_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!listener->wake_.valid()) {
    return absl::ErrnoToStatus(errno, "make an eventfd");
  }
  listener->acceptor_ = std::thread([raw = listener.get()] { raw->AcceptLoop(); });
  return listener;
}

DataListener::DataListener(Options options, std::vector<ReplicaVolume*> volumes)
    : options_(std::move(options)),
      environment_{.find_volume = [this](const Uuid& uuid) { return Find(uuid); },
                   .reachable = [this](const std::string& node) { return IsReachable(node); },
                   .hello_deadline = options_.hello_deadline},
      volumes_(std::move(volumes)) {}

DataListener::~DataListener() { Stop(); }

absl::Status DataListener::Listen(const std::string& address) {
  const std::optional<HostPort> parts = Split(address);
  if (!parts) {
    return absl::InvalidArgumentError(
        absl::StrCat("data address '", address, "': 'host:port' or '[v6]:port' expected"));
  }
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(parts->host.c_str(), parts->port.c_str(), &hints, &found); error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("data address '", address, "': ", ::gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  UniqueFd socket(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) {
    return absl::ErrnoToStatus(errno, absl::StrCat("data address '", address, "'"));
  }
  Set(socket.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (found->ai_family == AF_INET6) {
    Set(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, 1);
  }
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  if (::bind(socket.get(), found->ai_addr, found->ai_addrlen) != 0 || ::listen(socket.get(), kBacklog) != 0 ||
      ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound), &length) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("listen on data address '", address, "'"));
  }
  bound_.push_back(Text(bound, length));
  listeners_.push_back(std::move(socket));
  spdlog::info("event=data_listening address={}", bound_.back());
  return absl::OkStatus();
}

void DataListener::AcceptLoop() {
  BlockSignals();
  bool exhausted = false;  // no descriptors: the backlog waits until one comes free
  while (!stopping_) {
    std::vector<pollfd> waits = {{.fd = wake_.get(), .events = POLLIN, .revents = 0}};
    for (const UniqueFd& listener : listeners_) {
      waits.push_back({.fd = exhausted ? -1 : listener.get(), .events = POLLIN, .revents = 0});
    }
    if (::poll(waits.data(), waits.size(), exhausted ? 100 : -1) < 0 && errno != EINTR) {
      spdlog::critical("event=data_listener_failed errno={}", errno);
      return;
    }
    uint64_t wakes = 0;
    [[maybe_unused]] const ssize_t drained = ::read(wake_.get(), &wakes, sizeof wakes);
    Reap();
    exhausted = false;
    for (size_t i = 1; i < waits.size() && !stopping_; ++i) {
      if ((waits[i].revents & POLLIN) != 0) {
        errno = 0;
        AcceptOne(waits[i].fd);
        exhausted |= errno == EMFILE || errno == ENFILE;
      }
    }
  }
}

// Leaves the errno of accept(2) when that failed.
void DataListener::AcceptOne(int listener) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  UniqueFd socket(::accept4(listener, reinterpret_cast<sockaddr*>(&address), &length, SOCK_CLOEXEC));
  if (!socket.valid()) {
    const int error = errno;
    if (error != EAGAIN && error != ECONNABORTED && error != EINTR) {
      spdlog::error("event=accept_failed errno={}", error);
    }
    errno = error;
    return;
  }
  const std::string peer = Text(address, length);
  Prepare(socket.get());
  const std::lock_guard lock(mutex_);
  if (connections_.size() >= options_.max_connections) {
    spdlog::error("event=connection_refused peer={} reason=\"{} connections are open\"", peer,
                  connections_.size());
    return;
  }
  Connection& connection = connections_.emplace_back();
  connection.socket = std::move(socket);
  connection.thread = std::thread([this, &connection, peer] {
    BlockSignals();
    ReplicaSession(environment_, connection.socket.get(), peer).Run();
    ::shutdown(connection.socket.get(), SHUT_RDWR);  // the descriptor is closed when the thread is joined
    connection.done = true;
    Wake();
  });
}

void DataListener::Prepare(int socket) const {
  const int timeout = static_cast<int>(options_.peer_timeout.count());
  const int seconds = std::max(1, timeout / 1000);
  Set(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  // A peer that is idle and dead answers no probe; one that is dead while we send acknowledges nothing.
  Set(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  Set(socket, IPPROTO_TCP, TCP_KEEPIDLE, std::max(1, seconds / 2));
  Set(socket, IPPROTO_TCP, TCP_KEEPINTVL, std::max(1, seconds / 4));
  Set(socket, IPPROTO_TCP, TCP_KEEPCNT, 2);
  Set(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, timeout);
  const timeval limit{.tv_sec = timeout / 1000, .tv_usec = timeout % 1000 * 1000};
  ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

void DataListener::Reap() {
  std::list<Connection> ended;
  {
    const std::lock_guard lock(mutex_);
    for (auto at = connections_.begin(); at != connections_.end();) {
      const auto next = std::next(at);
      if (at->done) {
        ended.splice(ended.end(), connections_, at);
      }
      at = next;
    }
  }
  for (Connection& connection : ended) {
    connection.thread.join();
  }
}

void DataListener::Wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);
}

bool DataListener::IsReachable(const std::string& node) const {
  const std::lock_guard lock(mutex_);
  return !unreachable_.contains(node);
}

void DataListener::Add(ReplicaVolume& volume) {
  const std::lock_guard lock(mutex_);
  volumes_.push_back(&volume);
}

void DataListener::Remove(ReplicaVolume& volume) {
  const std::lock_guard lock(mutex_);
  std::erase(volumes_, &volume);
}

ReplicaVolume* DataListener::Find(const Uuid& uuid) const {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(volumes_.begin(), volumes_.end(), [&](const ReplicaVolume* volume) {
    return volume->options().uuid == uuid;
  });
  return found == volumes_.end() ? nullptr : *found;
}

void DataListener::SetReachable(const std::string& node, bool reachable) {
  std::vector<ReplicaVolume*> volumes;
  {
    const std::lock_guard lock(mutex_);
    if (reachable) {
      unreachable_.erase(node);
    } else {
      unreachable_.insert(node);
      volumes = volumes_;
    }
  }
  spdlog::info("event=node_reachable node={} reachable={}", node, reachable);
  for (ReplicaVolume* const volume : volumes) {
    for (const std::shared_ptr<Session>& session : volume->sessions().All()) {
      if (session->identity.node == node) {
        session->Cut();
      }
    }
  }
}

void DataListener::Stop() {
  if (stopping_.exchange(true)) {
    return;
  }
  if (acceptor_.joinable()) {
    Wake();
    acceptor_.join();
  }
  listeners_.clear();
  std::list<Connection> ended;
  {
    const std::lock_guard lock(mutex_);
    for (Connection& connection : connections_) {
      ::shutdown(connection.socket.get(), SHUT_RDWR);
    }
    ended.swap(connections_);
  }
  for (Connection& connection : ended) {
    connection.thread.join();
  }
}

size_t DataListener::connections() const {
  const std::lock_guard lock(mutex_);
  size_t open = 0;
  for (const Connection& connection : connections_) {
    open += connection.done ? 0 : 1;
  }
  return open;
}

}  // namespace pmirror::server
