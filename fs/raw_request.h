// SPDX-License-Identifier: BSD-3-Clause
// What libfuse 3.14 does not translate between the kernel and its operations table, read from and written to
// the raw messages
// (<linux/fuse.h>): the "drop setuid bits" flags of the kernel's killpriv protocol, parallel direct writes,
// and two requests, TMPFILE and SYNCFS.
//
// Messages come from the kernel; still no field is read beyond their length.
#pragma once

#include <linux/fuse.h>
#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <optional>
#include <span>

#include "fs/caller.h"

namespace pmirror::fs {

class RawRequest {
 public:
  // `message` must outlive this object, which is the thread's current request while it lives.
  explicit RawRequest(std::span<const char> message);
  ~RawRequest();
  RawRequest(const RawRequest&) = delete;
  RawRequest& operator=(const RawRequest&) = delete;

  // The one this thread works on; null outside of one.
  static const RawRequest* Current();

  // 0 when the message is too short to be one.
  uint32_t opcode() const { return header_.opcode; }
  const fuse_in_header& header() const { return header_; }
  Caller caller() const;

  // The kernel leaves it to us to take setuid and setgid bits away with this write, truncation or change of
  // owner.
  bool DropsPrivileges() const;

  std::optional<fuse_create_in> Creation() const;  // of a TMPFILE
  // The kernel's INIT offers the killpriv protocol.
  bool OffersKillpriv() const;

 private:
  template <typename Body>
  std::optional<Body> BodyAs() const;

  const std::span<const char> message_;
  fuse_in_header header_{};
};

// A reply on its way to the kernel, as libfuse wrote it, with what libfuse does not know of added.
class AmendedReply {
 public:
  AmendedReply(const RawRequest* request, const iovec* parts, int count);
  const iovec* parts() const { return parts_; }

 private:
  void AmendInit(const iovec& body);
  void AmendOpen(const iovec& body, size_t open_at);

  const iovec* parts_;
  std::array<iovec, 2> own_parts_{};
  std::array<char, sizeof(fuse_entry_out) + sizeof(fuse_open_out)> own_body_{};
  static_assert(sizeof(fuse_init_out) <= sizeof(fuse_entry_out) + sizeof(fuse_open_out));
};

}  // namespace pmirror::fs
