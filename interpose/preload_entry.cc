// SPDX-License-Identifier: BSD-3-Clause
// The preload library's side of libpmirror.
#include "interpose/preload_entry.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>

#include "interpose/describe_volume.h"
#include "interpose/flush.h"
#include "interpose/sync.h"
#include "interpose/thread_state.h"

namespace pmirror::interpose {
namespace {

// All of [address, address + length) in replicated mappings?
bool Covered(Runtime& runtime, uintptr_t address, size_t length) {
  Mapping mapping;
  uintptr_t at = address;
  while (at < address + length) {
    if (!runtime.maps().Find(at, mapping) || (mapping.flags & kMapShared) == 0) {
      return false;
    }
    at = mapping.end();
  }
  return true;
}

uintptr_t Number(const void* address) { return reinterpret_cast<uintptr_t>(address); }

// The next ranges of the list, from byte `offset` of the first: as many as one flush takes, and as many bytes. Both
// move on.
size_t TakeSome(std::span<const pmirror_range>& ranges, size_t& offset, size_t bytes,
                std::span<FlushedRange> some) {
  size_t count = 0;
  while (count < some.size() && !ranges.empty() && bytes > 0) {
    const size_t length = std::min(ranges[0].length - offset, bytes);
    if (length != 0) {
      some[count++] = {Number(ranges[0].address) + offset, length};
    }
    offset += length;
    bytes -= length;
    if (offset == ranges[0].length) {
      ranges = ranges.subspan(1);
      offset = 0;
    }
  }
  return count;
}

using FlushFunction = Error (*)(Runtime&, std::span<FlushedRange>, ErrorPlace&);

// Lists that are longer than one capture holds go in several.
Error FlushAll(std::span<const pmirror_range> ranges, size_t bytes, FlushFunction flush, ErrorPlace& place) {
  Runtime* runtime = Runtime::Get();
  for (const pmirror_range& range : ranges) {
    if (runtime == nullptr || !Covered(*runtime, Number(range.address), range.length)) {
      return {EINVAL, "a range is not mapped from a replicated file"};
    }
  }
  Error result = Error::Ok();
  size_t offset = 0;
  while (!ranges.empty()) {
    std::array<FlushedRange, kMaxFlushed> part;
    const size_t some = TakeSome(ranges, offset, bytes, part);
    ErrorPlace failed;
    const Error flushed = flush(*runtime, std::span(part).first(some), failed);
    if (result.ok() && !flushed.ok()) {
      result = flushed;
      place = failed;
    }
  }
  return result;
}

int FlushRanges(const pmirror_range* ranges, size_t count) {
  ErrorPlace place;
  const Error result = FlushAll({ranges, count}, SIZE_MAX, FlushNow, place);
  if (!result.ok()) {
    errno = result.code == EINVAL ? EINVAL : Fail(result, place);
    return -1;
  }
  return 0;
}

int FlushAndVerify(const pmirror_range* ranges, size_t count) {
  ErrorPlace place;
  const Error result = FlushAll({ranges, count}, kMaxVerified, FlushVerified, place);
  if (result.ok()) {
    return 0;
  }
  if (result.code == EINVAL) {
    errno = EINVAL;
    return -1;
  }
  const int code = Fail(result, place);
  const bool of_verify = result.code == EILSEQ || result.code == EAGAIN || result.code == EHOSTDOWN;
  errno = of_verify ? result.code : code;
  return -1;
}

int FlushAtomically(const pmirror_range* ranges, size_t count) {
  size_t bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    bytes += std::min(ranges[i].length, kMaxGroup + 1);
  }
  if (count > kMaxFlushed || bytes > kMaxGroup) {
    errno = E2BIG;
    return -1;
  }
  ErrorPlace place;
  const Error result = FlushAll({ranges, count}, SIZE_MAX, FlushGroup, place);
  if (result.ok()) {
    return 0;
  }
  const bool of_arguments = result.code == EINVAL || result.code == EXDEV || result.code == E2BIG;
  errno = of_arguments ? result.code : Fail(result, place);
  return -1;
}

int LastError(const char** what) {
  const ThreadState& thread = thread_state();
  if (what != nullptr) {
    *what = thread.last_doing;
  }
  return thread.last_error;
}

void LastErrorInfo(pmirror_error_info* info) {
  const ThreadState& thread = thread_state();
  const ErrorPlace& place = thread.last_place;
  info->error = thread.last_error;
  info->action = place.action;
  info->range = {reinterpret_cast<const void*>(place.range.address), place.range.length};
  info->file = place.file;
  info->offset = place.offset;
  info->replica = place.replica;
  CopyText(info->text, sizeof(info->text), thread.last_doing);
  Runtime* runtime = Runtime::Get();
  if (runtime != nullptr && place.volume < runtime->volume_count() && place.replica >= 0) {
    const VolumePage& page = runtime->volume(place.volume).page();
    CopyText(info->replica_node, sizeof(info->replica_node), page.replica_names[place.replica]);
  }
}

int Attributes(const void* address, pmirror_attributes* out) {
  Runtime* runtime = Runtime::Get();
  Mapping mapping;
  if (runtime == nullptr || !runtime->maps().Find(Number(address), mapping) ||
      !runtime->files().Pin(mapping.file)) {
    return ENXIO;
  }
  const FileEntry& entry = runtime->files().at(mapping.file);
  const Volume& volume = runtime->volume(entry.volume.load(std::memory_order_relaxed));
  DescribeVolume(volume.page(), Carrier::kPreload, *out);
  if (!runtime->link().Lives()) {  // what the page says was said by a daemon that is gone
    out->state = PMIRROR_CLOSING;
  }
  out->file = Raw(entry.file_id());
  out->offset = mapping.OffsetOf(Number(address));
  CopyText(out->volume, sizeof(out->volume), volume.name());
  runtime->Unpin(mapping.file, /*holding_map_lock=*/false);
  return 0;
}

int VolumeOf(const void* address) {
  Runtime* runtime = Runtime::Get();
  Mapping mapping;
  if (runtime == nullptr || !runtime->maps().Find(Number(address), mapping)) {
    return -1;
  }
  return static_cast<int>(runtime->files().at(mapping.file).volume.load(std::memory_order_relaxed));
}

const char* SocketPath() {
  const Runtime* runtime = Runtime::Get();
  return runtime != nullptr ? runtime->socket_path() : "";
}

int IsAllReplicated(const void* address, size_t length) {
  Runtime* runtime = Runtime::Get();
  return runtime != nullptr && length != 0 && Covered(*runtime, Number(address), length) ? 1 : 0;
}

bool IsActive() { return Runtime::Get() != nullptr; }

constexpr PreloadTable kTable{.version = kPreloadTableVersion,
                              .active = IsActive,
                              .flush = FlushRanges,
                              .flush_verify = FlushAndVerify,
                              .flush_atomic = FlushAtomically,
                              .error = LastError,
                              .error_info = LastErrorInfo,
                              .is_replicated = IsAllReplicated,
                              .attributes = Attributes,
                              .volume_of = VolumeOf,
                              .socket_path = SocketPath};

}  // namespace
}  // namespace pmirror::interpose

extern "C" const pmirror::interpose::PreloadTable* pmirror_preload_entry() {
  return &pmirror::interpose::kTable;
}
