// SPDX-License-Identifier: BSD-3-Clause
// The socket at which programs reach the daemon of their node. It can be connected to by every user: what a program may do is
// said by the descriptors it passes.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "replication/unique_fd.h"

namespace pmirror::fs {

class LocalListener {
 public:
  // Makes and listens at a SOCK_SEQPACKET socket of mode 0666. Takes the place of a socket that nobody listens at. INVALID_ARGUMENT: the path is too
  // long; FAILED_PRECONDITION: its directory is not there; ALREADY_EXISTS: a daemon listens there, or it is no socket.
  static absl::StatusOr<LocalListener> Open(const std::string& path);

  LocalListener(LocalListener&&) = default;
  LocalListener& operator=(LocalListener&&) = delete;
  // Removes the socket file, unless somebody has put another one there.
  ~LocalListener();

  int fd() const { return socket_.get(); }

 private:
  LocalListener(UniqueFd socket, std::string path) : socket_(std::move(socket)), path_(std::move(path)) {}

  UniqueFd socket_;
  std::string path_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace pmirror::fs
