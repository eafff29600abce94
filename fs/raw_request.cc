// SPDX-License-Identifier: BSD-3-Clause
// Reading and amending raw FUSE messages. See raw_request.h.
#include "fs/raw_request.h"

#include <cstring>

namespace pmirror::fs {
namespace {

thread_local const RawRequest* current = nullptr;

}  // namespace

RawRequest::RawRequest(std::span<const char> message) : message_(message) {
  if (message_.size() >= sizeof(header_)) {
    std::memcpy(&header_, message_.data(), sizeof(header_));
  }
  current = this;
}

RawRequest::~RawRequest() { current = nullptr; }

const RawRequest* RawRequest::Current() { return current; }

template <typename Body>
std::optional<Body> RawRequest::BodyAs() const {
  if (message_.size() < sizeof(header_) + sizeof(Body)) {
    return std::nullopt;
  }
  Body body;
  std::memcpy(&body, message_.data() + sizeof(header_), sizeof(body));
  return body;
}

Caller RawRequest::caller() const {
  const std::optional<fuse_create_in> creation = Creation();
  return {.uid = header_.uid,
          .gid = header_.gid,
          .umask = creation ? creation->umask : 0,
          .pid = static_cast<pid_t>(header_.pid)};
}

bool RawRequest::DropsPrivileges() const {
  switch (opcode()) {
    case FUSE_WRITE: {
      const auto body = BodyAs<fuse_write_in>();
      return body && (body->write_flags & FUSE_WRITE_KILL_SUIDGID) != 0;
    }
    case FUSE_SETATTR: {
      const auto body = BodyAs<fuse_setattr_in>();
      return body && (body->valid & FATTR_KILL_SUIDGID) != 0;
    }
    case FUSE_OPEN: {
      const auto body = BodyAs<fuse_open_in>();
      return body && (body->open_flags & FUSE_OPEN_KILL_SUIDGID) != 0;
    }
    default:
      return false;
  }
}

std::optional<fuse_create_in> RawRequest::Creation() const {
  return opcode() == FUSE_TMPFILE ? BodyAs<fuse_create_in>() : std::nullopt;
}

bool RawRequest::OffersKillpriv() const {
  const auto body = opcode() == FUSE_INIT ? BodyAs<fuse_init_in>() : std::nullopt;
  return body && (body->flags & FUSE_HANDLE_KILLPRIV_V2) != 0;
}

AmendedReply::AmendedReply(const RawRequest* request, const iovec* parts, int count) : parts_(parts) {
  if (request == nullptr || count != 2 || parts[0].iov_len != sizeof(fuse_out_header)) {
    return;
  }
  fuse_out_header header{};
  std::memcpy(&header, parts[0].iov_base, sizeof(header));
  if (header.unique != request->header().unique || header.error != 0) {
    return;  // a notification sent meanwhile, or a refusal
  }
  const iovec& body = parts[1];
  if (request->OffersKillpriv() && body.iov_len == sizeof(fuse_init_out)) {
    AmendInit(body);
  } else if (request->opcode() == FUSE_OPEN && body.iov_len == sizeof(fuse_open_out)) {
    AmendOpen(body, 0);
  } else if (request->opcode() == FUSE_CREATE &&
             body.iov_len == sizeof(fuse_entry_out) + sizeof(fuse_open_out)) {
    AmendOpen(body, sizeof(fuse_entry_out));
  }
  if (parts_ == own_parts_.data()) {
    own_parts_ = {parts[0], iovec{.iov_base = own_body_.data(), .iov_len = body.iov_len}};
  }
}

void AmendedReply::AmendInit(const iovec& body) {
  fuse_init_out init{};
  std::memcpy(&init, body.iov_base, sizeof(init));
  init.flags |= FUSE_HANDLE_KILLPRIV_V2;
  std::memcpy(own_body_.data(), &init, sizeof(init));
  parts_ = own_parts_.data();
}

void AmendedReply::AmendOpen(const iovec& body, size_t open_at) {
  std::memcpy(own_body_.data(), body.iov_base, body.iov_len);
  fuse_open_out open{};
  std::memcpy(&open, own_body_.data() + open_at, sizeof(open));
  if ((open.open_flags & FOPEN_DIRECT_IO) == 0) {
    return;
  }
  // Writes inside the file by several threads need not wait for each other's replicas; the kernel still
  // serialises those that extend it.
  open.open_flags |= FOPEN_PARALLEL_DIRECT_WRITES;
  std::memcpy(own_body_.data() + open_at, &open, sizeof(open));
  parts_ = own_parts_.data();
}

}  // namespace pmirror::fs
