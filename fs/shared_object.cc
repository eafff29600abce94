// SPDX-License-Identifier: BSD-3-Clause
#include "fs/shared_object.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "absl/status/status.h"

namespace pmirror::fs {

absl::StatusOr<SharedMemory> SharedMemory::Create(const char* name, size_t bytes, Receivers receivers) {
  SharedMemory memory;
  memory.fd_ = UniqueFd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.fd_.valid() || ::ftruncate(memory.fd(), static_cast<off_t>(bytes)) != 0) {
    return absl::ErrnoToStatus(errno, "create shared memory");
  }
  memory.address_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd(), 0);
  if (memory.address_ == MAP_FAILED) {
    memory.address_ = nullptr;
    return absl::ErrnoToStatus(errno, "map shared memory");
  }
  memory.bytes_ = bytes;
  const int seals =
      F_SEAL_SHRINK | F_SEAL_GROW | (receivers == Receivers::kReadOnly ? F_SEAL_FUTURE_WRITE : 0);
  if (::fcntl(memory.fd(), F_ADD_SEALS, seals) != 0) {
    return absl::ErrnoToStatus(errno, "seal shared memory");
  }
  return memory;
}

absl::StatusOr<SharedMemory> SharedMemory::Receive(UniqueFd fd, size_t bytes) {
  struct stat attributes {};
  if (::fstat(fd.get(), &attributes) != 0) {
    return absl::ErrnoToStatus(errno, "look at shared memory of a program");
  }
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || static_cast<size_t>(attributes.st_size) < bytes) {
    return absl::InvalidArgumentError(
        "shared memory of a program is too small or not sealed against shrinking");
  }
  SharedMemory memory;
  memory.fd_ = std::move(fd);
  memory.address_ = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, memory.fd(), 0);
  if (memory.address_ == MAP_FAILED) {
    memory.address_ = nullptr;
    return absl::ErrnoToStatus(errno, "map shared memory of a program");
  }
  memory.bytes_ = bytes;
  return memory;
}

}  // namespace pmirror::fs
