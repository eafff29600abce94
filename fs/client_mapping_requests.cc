// SPDX-License-Identifier: BSD-3-Clause
// kMapped and kUnmapped, and what a mapping leaves behind. Everything that may be dirty is held by the volume before the mapping goes from the
// process's list.
#include <cerrno>
#include <iterator>
#include <utility>

#include "fs/client_requests.h"
#include "fs/ticket_reader.h"

namespace pmirror::fs {

using local::Request;

namespace {

bool IsPageAligned(uint64_t value) { return value % kPageSize == 0; }

bool MakesSense(const Request& request) {
  return IsPageAligned(request.address) && IsPageAligned(request.length) &&
         request.length < UINTPTR_MAX - request.address && IsPageAligned(request.offset) &&
         request.offset < kMaxFileBytes && request.length <= kMaxFileBytes - request.offset;
}

bool ExtentsMakeSense(const Request& request) {
  if (request.extent_count > local::kMaxHandover) {
    return false;
  }
  for (const Extent& extent : std::span(request.extents).first(request.extent_count)) {
    if (SaneExtent(extent.offset, extent.length) != extent) {
      return false;
    }
  }
  return true;
}

}  // namespace

void ClientRequests::Mapped(const Process& process, const Request& request, ClientReply& reply,
                            Leases& let_go) {
  const FileKey key{request.volume, FileId{request.file}};
  if (!MakesSense(request) || request.length == 0 ||
      request.tracked > static_cast<uint32_t>(Tracking::kWrittenPresent)) {
    Refuse(reply.record, EINVAL, "the numbers of a mapping make no sense");
    return;
  }
  std::shared_ptr<LeasedFile> file;
  std::vector<ClientMapping> replaced;
  size_t count = 0;
  bool first_writable = false;
  {
    const ClientProcess::View files = process->Look();
    file = files->Find(key);
    replaced = files->mappings.Within(request.address, request.address + request.length);
    count = files->mappings.size();
  }
  if (file == nullptr || (request.writable != 0 && !file->writable)) {
    Refuse(reply.record, EINVAL,
           "a mapping of a file of which this process has no backing descriptor that allows it");
    return;
  }
  if (count >= kMaxMappings) {
    Refuse(reply.record, ENOMEM, "this process has too many mappings of files of volumes: unmap some");
    return;
  }
  if (!replaced.empty()) {  // unmapped behind our back: what was stored there, no page table says any more
    HoldWritable(replaced);
    RemoveMappings(process, request.address, request.address + request.length, let_go);
    replaced.clear();
  }
  first_writable = request.writable != 0 && !process->Look()->mappings.MapsWritable(key);
  if (first_writable) {
    volumes_[key.volume].mappers.Add(*file->lease.file());
  }
  process->Change()->mappings.Add({.address = request.address,
                                   .length = request.length,
                                   .offset = request.offset,
                                   .writable = request.writable != 0,
                                   .tracking = static_cast<Tracking>(request.tracked),
                                   .key = key,
                                   .file = std::move(file)});
}

void ClientRequests::Unmapped(const Process& process, const Request& request, ClientReply& reply,
                              Leases& let_go) {
  const FileKey key{request.volume, FileId{request.file}};
  if (!MakesSense(request) || !ExtentsMakeSense(request)) {
    Refuse(reply.record, EINVAL, "the numbers of an unmapping make no sense");
    return;
  }
  const uintptr_t past = request.address + request.length;
  std::shared_ptr<LeasedFile> file;
  std::vector<ClientMapping> parts;
  {
    const ClientProcess::View files = process->Look();
    file = files->Find(key);
    parts = files->mappings.Within(request.address, past);
  }
  const bool holds = request.extent_count != 0 || request.abandoned != 0;
  if (file == nullptr || (holds && !file->writable)) {
    Refuse(reply.record, EINVAL,
           "an unmapping of a file of which this process has no backing descriptor that allows it");
    return;
  }
  // Not cut to what is unmapped: a redo range that a program hands over may reach beyond it, and is nobody's afterwards. The process may
  // write any byte of the file, so it can at worst make us copy what is clean.
  if (request.extent_count != 0) {
    volumes_[key.volume].volume.HoldDirty(file->lease.file(),
                                          std::span(request.extents).first(request.extent_count));
  }
  if (request.abandoned != 0) {
    HoldWritable(parts);
  } else {
    // Mappings of other files there were unmapped behind our back.
    std::erase_if(parts, [&](const ClientMapping& part) { return part.key == key; });
    HoldWritable(parts);
  }
  parts.clear();
  RemoveMappings(process, request.address, past, let_go);
}

void ClientRequests::HoldWritable(const std::vector<ClientMapping>& parts) {
  for (const ClientMapping& part : parts) {
    if (part.writable) {
      volumes_[part.key.volume].volume.HoldDoubtful(part.file->lease.file(), part.extent());
    }
  }
}

void ClientRequests::RemoveMappings(const Process& process, uintptr_t start, uintptr_t past, Leases& let_go) {
  std::vector<ClientMapping> removed;
  std::map<FileKey, std::shared_ptr<LeasedFile>> unmapped;  // of which nothing that can be stored to is left
  {
    const ClientProcess::Edit files = process->Change();
    removed = files->mappings.Remove(start, past);
    for (const ClientMapping& part : removed) {
      if (part.writable && !files->mappings.MapsWritable(part.key)) {
        unmapped.emplace(part.key, part.file);
      }
    }
  }
  for (auto& [key, file] : unmapped) {
    volumes_[key.volume].mappers.Remove(*file->lease.file());
  }
  for (ClientMapping& part : removed) {
    let_go.push_back(std::move(part.file));
  }
}

void ClientRequests::HoldTickets(const ClientProcess& process, const FileKey& key, const LeasedFile& file) {
  ExtentSet dirty;
  AddTickets(process, key, {0, kMaxFileBytes}, dirty);
  if (!dirty.empty()) {
    const std::vector<Extent> extents = dirty.extents();
    volumes_[key.volume].volume.HoldDirty(file.lease.file(), extents);
  }
}

}  // namespace pmirror::fs
