// SPDX-License-Identifier: BSD-3-Clause
// Mounting, serving and unmounting. See fuse_session.h.
#define FUSE_USE_VERSION 314
#include "fs/fuse_session.h"

#include <fcntl.h>
#include <fuse3/fuse_lowlevel.h>
#include <pthread.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <vector>

namespace pmirror::fs {
namespace {

constexpr char kDevice[] = "/dev/fuse";
constexpr char kType[] = "fuse.pmirror";
// The largest write and the headers before it; fits what libfuse tells the kernel.
constexpr size_t kRequestBytes = 1024 * 1024 + 4096;
constexpr rlim_t kEnoughDescriptors = 1 << 20;

ssize_t WriteReply(int fd, iovec* parts, int count, void*) {
  const AmendedReply reply(RawRequest::Current(), parts, count);
  return ::writev(fd, reply.parts(), count);
}

// Never called: Serve reads itself. libfuse wants one.
ssize_t ReadRequest(int fd, void* buffer, size_t size, void*) { return ::read(fd, buffer, size); }

bool HasAcls(const BackingRoot& root) {
  return ::fgetxattr(root.fd(), "system.posix_acl_access", nullptr, 0) >= 0 || errno != EOPNOTSUPP;
}

Error MountDevice(int device, const MountOptions& options) {
  char data[128];
  std::snprintf(data, sizeof(data),
                "fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", device);
  const std::string source = "pmirror:" + options.socket;
  return ::mount(source.c_str(), options.mount_point.c_str(), kType, 0, data) == 0
             ? Error::Ok()
             : Error::FromErrno("mount the volume");
}

// Threads of the session take no signals: the daemon's own threads handle them.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &old_);
  }
  ~BlockedSignals() { ::pthread_sigmask(SIG_SETMASK, &old_, nullptr); }

 private:
  sigset_t old_;
};

// The one place where a session's thread may be cancelled: between requests.
ssize_t ReadCancellable(int fd, std::span<char> buffer) {
  ::pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, nullptr);
  const ssize_t n = ::read(fd, buffer.data(), buffer.size());
  const int saved = errno;
  ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, nullptr);
  errno = saved;
  return n;
}

}  // namespace

size_t RaiseDescriptorLimit() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < kEnoughDescriptors) {
    const rlimit raised{
        .rlim_cur = kEnoughDescriptors,
        .rlim_max = limit.rlim_max > kEnoughDescriptors ? limit.rlim_max : kEnoughDescriptors};
    if (::setrlimit(RLIMIT_NOFILE, &raised) != 0) {
      limit.rlim_cur = limit.rlim_max;  // what everybody may
      ::setrlimit(RLIMIT_NOFILE, &limit);
    }
  }
  ::getrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur;
}

FuseSession::FuseSession(FileSystem& file_system, const MountOptions& options)
    : options_(options), context_(file_system) {}

Result<std::unique_ptr<FuseSession>> FuseSession::Mount(FileSystem& file_system, const BackingRoot& root,
                                                        const MountOptions& options) {
  std::unique_ptr<FuseSession> session(new FuseSession(file_system, options));
  if (const Error error = session->Start(root); !error.ok()) {
    return error;
  }
  return session;
}

Error FuseSession::Start(const BackingRoot& root) {
  context_.has_acls = HasAcls(root);
  char program[] = "pmirror";
  char* argv[] = {program, nullptr};
  fuse_args args = FUSE_ARGS_INIT(1, argv);
  session_ = fuse_session_new(&args, &FuseOperations(), sizeof(fuse_lowlevel_ops), &context_);
  fuse_opt_free_args(&args);
  if (session_ == nullptr) {
    return {ENOMEM, "start a FUSE session"};
  }
  UniqueFd device(::open(kDevice, O_RDWR | O_CLOEXEC));
  if (!device.valid()) {
    return Error::FromErrno("open /dev/fuse");
  }
  fuse_custom_io io{};
  io.writev = &WriteReply;
  io.read = &ReadRequest;
  if (const int error = fuse_session_custom_io(session_, &io, device.get()); error != 0) {
    return {-error, "start a FUSE session"};
  }
  device_ = device.Release();
  PMIRROR_RETURN_IF_ERROR(MountDevice(device_, options_));
  context_.file_system.set_kernel_cache(this);
  const BlockedSignals blocked;
  entry_dropper_ = std::thread([this] { DropEntries(); });
  StartThreadIfNoneIdle();
  struct stat info {};
  if (::stat(options_.mount_point.c_str(), &info) != 0) {  // answered by the thread just started
    return Error::FromErrno("look at the mounted volume");
  }
  mounted_device_ = info.st_dev;
  return Error::Ok();
}

FuseSession::~FuseSession() {
  Unmount(Deadline::After({}));
  if (session_ != nullptr) {
    fuse_session_destroy(session_);
  }
}

// --- serving ---

void FuseSession::StartThreadIfNoneIdle() {
  std::lock_guard lock(mutex_);
  if (idle_ > 0 || stopping_ || threads_.size() >= options_.max_threads + blocked_) {
    return;
  }
  ++idle_;
  threads_.emplace_back([this] { Serve(); });
}

void FuseSession::Serve() {
  ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, nullptr);
  std::vector<char> buffer(kRequestBytes);
  for (;;) {
    const ssize_t n = ReadCancellable(device_, buffer);
    if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT)) {
      continue;  // ENOENT: the request was taken back
    }
    if (n <= 0) {
      break;
    }
    {
      std::lock_guard lock(mutex_);
      --idle_;
    }
    StartThreadIfNoneIdle();
    ServeRequest({buffer.data(), static_cast<size_t>(n)});
    std::lock_guard lock(mutex_);
    ++idle_;
  }
  std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

void FuseSession::ServeRequest(std::span<char> message) {
  const RawRequest request(message);
  if (AnswerBeyondLibfuse(context_, request, device_)) {
    return;
  }
  fuse_buf buffer{};
  buffer.mem = message.data();
  buffer.size = message.size();
  fuse_session_process_buf(session_, &buffer);
}

bool FuseSession::WaitEnded(Deadline deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, deadline.Remaining(), [this] { return ended_; });
}

// --- what the kernel is told ---

void FuseSession::DropData(FileId id, Extent extent) {
  {
    std::lock_guard lock(mutex_);
    ++blocked_;
  }
  StartThreadIfNoneIdle();
  fuse_lowlevel_notify_inval_inode(session_, Raw(id), static_cast<off_t>(extent.offset),
                                   static_cast<off_t>(extent.length));
  std::lock_guard lock(mutex_);
  --blocked_;
}

// The handle is the one that the kernel's FUSE would make (fs/fuse/inode.c, fuse_encode_fh); without export
// support, which we do not announce, it finds what is in the kernel's memory and asks nobody.
int FuseSession::WriteBack(FileId id) {
  constexpr int kIno64Gen = 0x81;
  struct {
    file_handle head;
    uint32_t words[3];
  } handle{};
  handle.head.handle_bytes = sizeof(handle.words);
  handle.head.handle_type = kIno64Gen;
  handle.words[0] = static_cast<uint32_t>(Raw(id) >> 32);
  handle.words[1] = static_cast<uint32_t>(Raw(id));
  {
    std::lock_guard lock(mutex_);
    ++blocked_;
  }
  StartThreadIfNoneIdle();
  int error = 0;
  {
    const UniqueFd mount(::open(options_.mount_point.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    const UniqueFd file(mount.valid() ? ::open_by_handle_at(mount.get(), &handle.head, O_RDONLY | O_CLOEXEC)
                                      : -1);
    if (!file.valid()) {
      error = errno == ESTALE ? 0 : errno;
    } else if (::fsync(file.get()) != 0) {
      error = errno;
    }
  }
  std::lock_guard lock(mutex_);
  --blocked_;
  return error;
}

void FuseSession::DropAttributes(FileId id) {
  // A negative offset: attributes only.
  fuse_lowlevel_notify_inval_inode(session_, Raw(id), -1, 0);
}

void FuseSession::DropEntrySoon(FileId parent, const char* name) {
  std::lock_guard lock(mutex_);
  if (entries_.size() < kMaxStaleEntries) {
    entries_.push_back({parent, name});
    changed_.notify_all();
  }
}

void FuseSession::DropEntries() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !entries_.empty(); });
    if (stopping_) {
      return;
    }
    const StaleEntry entry = std::move(entries_.front());
    entries_.pop_front();
    lock.unlock();
    fuse_lowlevel_notify_inval_entry(session_, Raw(entry.parent), entry.name.c_str(), entry.name.size());
    lock.lock();
  }
}

// --- the end ---

// Whether the mount point still is this session's mount. Somebody may have unmounted it and mounted something
// else.
bool FuseSession::StillMounted() {
  struct stat info {};
  return ::stat(options_.mount_point.c_str(), &info) == 0 && info.st_dev == mounted_device_;
}

bool FuseSession::LeaveMount(Deadline deadline) {
  if (WaitEnded(Deadline::After({}))) {
    return true;
  }
  if (!StillMounted()) {
    AbortConnection();
    return false;
  }
  if (UniqueFd mount(::open(options_.mount_point.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      mount.valid()) {
    ::syncfs(mount.get());
  }
  while (::umount2(options_.mount_point.c_str(), UMOUNT_NOFOLLOW) != 0) {
    if (errno != EBUSY || deadline.Expired()) {
      if (::umount2(options_.mount_point.c_str(), MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW) != 0) {
        AbortConnection();
      }
      return false;
    }
    // The kernel tells nobody when the last user of a mount leaves, so this looks again now and then.
    WaitEnded(
        Deadline::After(std::min<Deadline::Duration>(std::chrono::milliseconds(50), deadline.Remaining())));
  }
  return true;
}

// For a mount that was detached under programs which still use it: nothing but this ends the requests that
// wait for each other.
void FuseSession::AbortConnection() {
  char path[64];
  std::snprintf(path, sizeof(path), "/sys/fs/fuse/connections/%u/abort", minor(mounted_device_));
  if (UniqueFd fd(::open(path, O_WRONLY | O_CLOEXEC)); fd.valid()) {
    [[maybe_unused]] const ssize_t n = ::write(fd.get(), "1", 1);
  }
}

bool FuseSession::Unmount(Deadline deadline) {
  if (device_ < 0) {
    return true;
  }
  const bool clean = LeaveMount(deadline);
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  entry_dropper_.join();
  for (std::thread& thread : threads_) {  // none is added any more
    ::pthread_cancel(thread.native_handle());
  }
  for (std::thread& thread : threads_) {
    thread.join();
  }
  context_.file_system.set_kernel_cache(nullptr);
  context_.ReleaseAll();
  fuse_session_destroy(session_);  // closes the device, and with it what is left of the connection
  session_ = nullptr;
  device_ = -1;
  return clean;
}

}  // namespace pmirror::fs
