// SPDX-License-Identifier: BSD-3-Clause
// See client_mappings.h.
#include "fs/client_mappings.h"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <utility>

namespace pmirror::fs {

ClientMapping ClientMapping::Clip(uintptr_t start, uintptr_t past) const {
  ClientMapping part = *this;
  part.address = std::max(start, address);
  part.length = std::min(past, end()) - part.address;
  part.offset = offset + (part.address - address);
  return part;
}

void ClientMappings::Add(ClientMapping mapping) {
  const uintptr_t address = mapping.address;
  by_file_[mapping.key].insert(address);
  const bool added = by_address_.emplace(address, std::move(mapping)).second;
  assert(added);
  static_cast<void>(added);
}

std::vector<ClientMapping> ClientMappings::Within(uintptr_t start, uintptr_t past) const {
  std::vector<ClientMapping> parts;
  auto at = by_address_.upper_bound(start);
  if (at != by_address_.begin() && std::prev(at)->second.end() > start) {
    --at;
  }
  for (; at != by_address_.end() && at->first < past; ++at) {
    parts.push_back(at->second.Clip(start, past));
  }
  return parts;
}

std::vector<ClientMapping> ClientMappings::Remove(uintptr_t start, uintptr_t past) {
  std::vector<ClientMapping> removed = Within(start, past);
  for (const ClientMapping& part : removed) {
    const auto at = std::prev(by_address_.upper_bound(part.address));
    const ClientMapping whole = std::move(at->second);
    by_address_.erase(at);
    const auto of_file = by_file_.find(whole.key);
    of_file->second.erase(whole.address);
    if (of_file->second.empty()) {
      by_file_.erase(of_file);
    }
    if (whole.address < part.address) {
      Add(whole.Clip(whole.address, part.address));
    }
    if (part.end() < whole.end()) {
      Add(whole.Clip(part.end(), whole.end()));
    }
  }
  return removed;
}

const std::set<uintptr_t>& ClientMappings::Of(const FileKey& key) const {
  static const std::set<uintptr_t> kNothing;
  const auto found = by_file_.find(key);
  return found == by_file_.end() ? kNothing : found->second;
}

bool ClientMappings::MapsWritable(const FileKey& key) const {
  const std::set<uintptr_t>& addresses = Of(key);
  return std::any_of(addresses.begin(), addresses.end(),
                     [this](uintptr_t address) { return at(address).writable; });
}

bool ClientMappings::MapsAnyOf(size_t volume) const {
  const auto first = by_file_.lower_bound(FileKey{volume, FileId::kNone});
  return first != by_file_.end() && first->first.volume == volume;
}

std::vector<FileKey> ClientMappings::Files() const {
  std::vector<FileKey> files;
  files.reserve(by_file_.size());
  for (const auto& [key, addresses] : by_file_) {
    files.push_back(key);
  }
  return files;
}

}  // namespace pmirror::fs
