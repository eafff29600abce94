// SPDX-License-Identifier: BSD-3-Clause
// See fake_daemon.h.
#include "tests/unit/interpose/fake_daemon.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace pmirror::interpose {

using local::Reply;
using local::Request;
using local::RequestKind;
using Lock = std::lock_guard<std::recursive_mutex>;

namespace {

UniqueFd Memory(const char* name, size_t bytes) {
  UniqueFd memory(::memfd_create(name, MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(memory.get(), static_cast<off_t>(bytes)), 0);
  return memory;
}

pid_t PeerOf(int connection) {
  ucred peer{};
  socklen_t length = sizeof(peer);
  EXPECT_EQ(::getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &length), 0);
  return peer.pid;
}

// False at the end of the connection.
bool Receive(int connection, Request& request, std::vector<UniqueFd>& received) {
  iovec part{.iov_base = &request, .iov_len = sizeof(request)};
  alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t got = ::recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); got > 0 && header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    for (size_t at = 0; CMSG_LEN((at + 1) * sizeof(int)) <= header->cmsg_len; ++at) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + at * sizeof(int), sizeof(int));
      received.emplace_back(fd);
    }
  }
  return got == static_cast<ssize_t>(sizeof(request)) && request.version == local::kVersion;
}

void Send(int connection, const Reply& reply, const std::vector<int>& descriptors) {
  iovec part{.iov_base = const_cast<Reply*>(&reply), .iov_len = sizeof(reply)};
  alignas(cmsghdr) char control[CMSG_SPACE(local::kMaxVolumes * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    const size_t bytes = descriptors.size() * sizeof(int);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(bytes);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(bytes);
    std::memcpy(CMSG_DATA(header), descriptors.data(), bytes);
  }
  ::sendmsg(connection, &message, MSG_NOSIGNAL);
}

}  // namespace

FakeDaemon::FakeDaemon(Settings settings) : settings_(settings) {
  char name[] = "/dev/shm/pmirror-test-XXXXXX";
  directory_ = ::mkdtemp(name);
  struct stat status {};
  EXPECT_EQ(::stat(directory_.c_str(), &status), 0);
  device_ = status.st_dev;
  socket_path_ = directory_ + ".socket";

  MakePage();
  Listen();
}

void FakeDaemon::MakePage() {
  page_memory_ = Memory("volume-page", sizeof(VolumePage));
  void* page = ::mmap(nullptr, sizeof(VolumePage), PROT_READ | PROT_WRITE, MAP_SHARED, page_memory_.get(), 0);
  page_ = static_cast<VolumePage*>(page);
  page_->magic = kVolumePageMagic;
  page_->version = 1;
  page_->epoch.store(1);
  page_->set.store(SetWord::Make(1, 0, SetVersion{1}).raw);
  page_->state.store(static_cast<uint32_t>(VolumeState::kServing));
  page_->on_loss = static_cast<uint32_t>(settings_.on_loss);
  ConfigureReplicas(*page_, 1);
  page_->deadline_ns = static_cast<uint64_t>(std::chrono::nanoseconds(settings_.deadline).count());
  page_->suspend_ns = static_cast<uint64_t>(std::chrono::nanoseconds(settings_.suspend).count());
  page_->domain = static_cast<uint32_t>(settings_.domain);
  page_->tracking = static_cast<uint32_t>(settings_.tracking);
}

void FakeDaemon::Listen() {
  listener_.Reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, socket_path_.c_str(), sizeof(address.sun_path) - 1);
  EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(::listen(listener_.get(), 16), 0);
  acceptor_ = std::thread([this] { Accept(); });
}

FakeDaemon::~FakeDaemon() {
  Stop();
  std::filesystem::remove_all(directory_);
}

void FakeDaemon::Stop() {
  {
    const Lock lock(mutex_);
    if (ending_) {
      return;
    }
    ending_ = true;
    ::shutdown(listener_.get(), SHUT_RDWR);
    for (int connection : connections_) {
      ::shutdown(connection, SHUT_RDWR);
    }
  }
  acceptor_.join();
  for (std::thread& server : servers_) {
    server.join();
  }
  servers_.clear();
  listener_.Reset();
  for (auto& [pid, process] : processes_) {
    ::munmap(process.tickets, sizeof(TicketTable));
  }
  processes_.clear();
  ::munmap(page_, sizeof(VolumePage));
  std::filesystem::remove(socket_path_);
}

void FakeDaemon::StartAgain() {
  const Lock lock(mutex_);
  ending_ = false;
  first_order_ += uint64_t{1} << 40;
  files_.clear();
  order_of_processes_.clear();
  mapped_.clear();
  counts_.clear();
  MakePage();
  Listen();
}

void FakeDaemon::Accept() {
  for (;;) {
    const int connection = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    const Lock lock(mutex_);
    if (connection < 0 || ending_) {
      if (connection >= 0) {
        ::close(connection);
      }
      return;
    }
    connections_.push_back(connection);
    servers_.emplace_back([this, connection] { Serve(connection); });
  }
}

void FakeDaemon::Serve(int connection) {
  const pid_t pid = PeerOf(connection);
  for (;;) {
    Request request;
    std::vector<UniqueFd> received;
    if (!Receive(connection, request, received)) {
      break;
    }
    std::function<void(pid_t, const Request&)> call;
    {
      const Lock lock(mutex_);
      call = calls_[request.kind];
    }
    if (call) {
      call(pid, request);
    }
    Reply reply;
    std::vector<int> out;
    std::vector<UniqueFd> owned;
    Answer(pid, request, received, reply, out, owned);
    Send(connection, reply, out);
  }
  const Lock lock(mutex_);
  std::erase(connections_, connection);
  ::close(connection);
  changed_.notify_all();
}

void FakeDaemon::Answer(pid_t pid, const Request& request, std::vector<UniqueFd>& received, Reply& reply,
                        std::vector<int>& out, std::vector<UniqueFd>& owned) {
  const Lock lock(mutex_);
  ++counts_[request.kind];
  if (refusals_[request.kind] != 0) {
    reply.error = refusals_[request.kind];
    std::strncpy(reply.text, "refused by the test", sizeof(reply.text) - 1);
    changed_.notify_all();
    return;
  }
  switch (request.kind) {
    case RequestKind::kHello:
      AnswerHello(pid, request, received, reply, out);
      break;
    case RequestKind::kOpenBacking:
      AnswerOpenBacking(received, reply, out, owned);
      break;
    case RequestKind::kMapped:
      mapped_.push_back({.pid = pid,
                         .file = request.file,
                         .address = request.address,
                         .length = request.length,
                         .offset = request.offset,
                         .writable = request.writable != 0,
                         .tracked = static_cast<Tracking>(request.tracked)});
      break;
    case RequestKind::kUnmapped:
      TakeUnmapped(pid, request);
      break;
    case RequestKind::kOpenSession:
      AnswerOpenSession(request, reply, out, owned);
      break;
    default:
      break;
  }
  changed_.notify_all();
}

void FakeDaemon::AnswerHello(pid_t pid, const Request& request, std::vector<UniqueFd>& received, Reply& reply,
                             std::vector<int>& out) {
  if (request.main == 0) {
    return;
  }
  // As the real one: memory that its maker could shrink would be a fault in the daemon.
  if (received.empty() || (::fcntl(received[0].get(), F_GET_SEALS) & F_SEAL_SHRINK) == 0) {
    reply.error = EINVAL;
    return;
  }
  Process& process = processes_[pid];
  if (process.tickets != nullptr) {  // exec: the same pid, another program
    ::munmap(process.tickets, sizeof(TicketTable));
  }
  process.tickets = static_cast<TicketTable*>(
      ::mmap(nullptr, sizeof(TicketTable), PROT_READ, MAP_SHARED, received[0].get(), 0));
  process.pagemap = received.size() > 1 ? std::move(received[1]) : UniqueFd();
  order_of_processes_.push_back(pid);
  reply.mount_count = 1;
  reply.mounts[0].device = device_;
  std::strncpy(reply.mounts[0].name, "v0", sizeof(reply.mounts[0].name) - 1);
  out.push_back(page_memory_.get());
}

FakeDaemon::File& FakeDaemon::Open(uint64_t id, uint64_t size) {
  auto [at, fresh] = files_.try_emplace(id);
  if (fresh) {
    at->second.slot = static_cast<uint32_t>(files_.size() - 1);
    at->second.order = Memory("order-page", kPageSize);
    EXPECT_EQ(::pwrite(at->second.order.get(), &first_order_, sizeof(first_order_), 0),
              static_cast<ssize_t>(sizeof(first_order_)));
    FileSlot& slot = page_->slots[at->second.slot];
    slot.size_generation.store(0);
    slot.size.store(size);
    slot.file.store(id);
  }
  return at->second;
}

void FakeDaemon::AnswerOpenBacking(std::vector<UniqueFd>& received, Reply& reply, std::vector<int>& out,
                                   std::vector<UniqueFd>& owned) {
  struct stat status {};
  if (received.size() != 1 || ::fstat(received[0].get(), &status) != 0) {
    reply.error = EINVAL;
    return;
  }
  const std::string link = "/proc/self/fd/" + std::to_string(received[0].get());
  const std::string path = std::filesystem::read_symlink(link).string();
  if (!path.starts_with(directory_ + "/")) {
    reply.error = ENODEV;
    return;
  }
  const int mode = ::fcntl(received[0].get(), F_GETFL) & O_ACCMODE;
  reply.writable = mode == O_RDWR ? 1 : 0;
  File& file = Open(status.st_ino, static_cast<uint64_t>(status.st_size));
  reply.file = status.st_ino;
  reply.slot = file.slot;
  reply.size = static_cast<uint64_t>(status.st_size);
  owned.emplace_back(::open(link.c_str(), (mode == O_RDWR ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  out.push_back(owned.back().get());
  if (reply.writable != 0) {
    out.push_back(file.order.get());
  }
}

void FakeDaemon::AnswerOpenSession(const Request& request, Reply& reply, std::vector<int>& out,
                                   std::vector<UniqueFd>& owned) {
  Result<Connector::Connection> connection =
      replica_.Connect(SessionId{request.session}, request.next_sequence,
                       Deadline::After(std::chrono::nanoseconds(request.wait_ns)));
  if (!connection.ok()) {
    reply.error = connection.error().code;
    return;
  }
  reply.session = Raw(connection.value().session);
  reply.received_sequence = connection.value().resumed.received_sequence;
  reply.durable_sequence = connection.value().resumed.durable_sequence;
  reply.credit_limit = connection.value().resumed.credit_limit;
  owned.push_back(std::move(connection.value().socket));
  out.push_back(owned.back().get());
}

void FakeDaemon::TakeUnmapped(pid_t pid, const Request& request) {
  for (uint32_t i = 0; i < request.extent_count; ++i) {
    handed_over_.push_back(request.extents[i]);
  }
  const uint64_t past = request.address + request.length;
  std::vector<Mapped> left;
  for (const Mapped& mapped : mapped_) {
    const uint64_t end = mapped.address + mapped.length;
    if (mapped.pid != pid || mapped.address >= past || request.address >= end) {
      left.push_back(mapped);
      continue;
    }
    if (mapped.address < request.address) {
      left.push_back(mapped);
      left.back().length = request.address - mapped.address;
    }
    if (end > past) {
      left.push_back(mapped);
      left.back().address = past;
      left.back().length = end - past;
      left.back().offset = mapped.offset + (past - mapped.address);
    }
  }
  mapped_ = std::move(left);
}

std::string FakeDaemon::MakeFile(const std::string& name, size_t bytes) {
  std::string path = directory_ + "/" + name;
  const UniqueFd file(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666));
  EXPECT_TRUE(file.valid());
  EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(bytes)), 0);
  return path;
}

FileId FakeDaemon::IdOf(const std::string& name) const {
  struct stat status {};
  EXPECT_EQ(::stat((directory_ + "/" + name).c_str(), &status), 0) << name;
  return FileId{status.st_ino};
}

std::string FakeDaemon::Content(const std::string& name) const {
  std::ostringstream text;
  text << std::ifstream(directory_ + "/" + name, std::ios::binary).rdbuf();
  return text.str();
}

std::string FakeDaemon::Replicated(const std::string& name) {
  const std::vector<std::byte> image = replica_.Image(IdOf(name));
  std::string text(reinterpret_cast<const char*>(image.data()), image.size());
  text.resize(std::max<size_t>(text.size(), std::filesystem::file_size(directory_ + "/" + name)));
  return text;
}

void FakeDaemon::Refuse(RequestKind kind, int error) {
  const Lock lock(mutex_);
  refusals_[kind] = error;
}

void FakeDaemon::OnRequest(RequestKind kind, std::function<void(pid_t, const Request&)> call) {
  const Lock lock(mutex_);
  calls_[kind] = std::move(call);
}

void FakeDaemon::SetFileFlags(const std::string& name, uint32_t flags) {
  const Lock lock(mutex_);
  page_->slots[Open(Raw(IdOf(name)), 0).slot].flags.store(flags);
}

std::vector<FakeDaemon::Mapped> FakeDaemon::Mappings() const {
  const Lock lock(mutex_);
  return mapped_;
}

std::vector<Extent> FakeDaemon::HandedOver() const {
  const Lock lock(mutex_);
  return handed_over_;
}

size_t FakeDaemon::Count(RequestKind kind) const {
  const Lock lock(mutex_);
  const auto at = counts_.find(kind);
  return at == counts_.end() ? 0 : at->second;
}

std::vector<pid_t> FakeDaemon::Processes() const {
  const Lock lock(mutex_);
  return order_of_processes_;
}

bool FakeDaemon::WaitFor(const std::function<bool()>& condition) {
  std::unique_lock<std::recursive_mutex> lock(mutex_);
  return changed_.wait_for(lock, std::chrono::seconds(30), condition);
}

const TicketTable* FakeDaemon::Tickets(pid_t pid) const {
  const Lock lock(mutex_);
  const auto at = processes_.find(pid);
  return at == processes_.end() ? nullptr : at->second.tickets;
}

int FakeDaemon::Pagemap(pid_t pid) const {
  const Lock lock(mutex_);
  const auto at = processes_.find(pid);
  return at == processes_.end() ? -1 : at->second.pagemap.get();
}

}  // namespace pmirror::interpose
