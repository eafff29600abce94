// SPDX-License-Identifier: BSD-3-Clause
// For tests of the replica: short ways to make operations and to look at trees.
#pragma once

#include <sys/stat.h>
#include <sys/xattr.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "replication/namespace_op.h"

namespace pmirror::server {

inline NamespaceOp CreateOp(uint64_t id, uint64_t parent, const std::string& name,
                            uint32_t mode = S_IFREG | 0644, const std::string& value = "") {
  NamespaceOp op;
  op.kind = OpKind::kCreate;
  op.target = FileId{id};
  op.parent = FileId{parent};
  op.name = name;
  op.mode = mode;
  op.value = value;
  return op;
}

inline NamespaceOp EntryOp(OpKind kind, uint64_t id, uint64_t parent, const std::string& name,
                           uint32_t flags = 0) {
  NamespaceOp op;
  op.kind = kind;
  op.flags = flags;
  op.target = FileId{id};
  op.parent = FileId{parent};
  op.name = name;
  return op;
}

inline NamespaceOp RenameOp(uint64_t id, uint64_t parent, const std::string& name, uint64_t new_parent,
                            const std::string& new_name, uint64_t replaced = 0, uint32_t flags = 0) {
  NamespaceOp op = EntryOp(OpKind::kRename, id, parent, name, flags);
  op.new_parent = FileId{new_parent};
  op.new_name = new_name;
  op.replaced = FileId{replaced};
  return op;
}

inline NamespaceOp ObjectOp(OpKind kind, uint64_t id) {
  NamespaceOp op;
  op.kind = kind;
  op.target = FileId{id};
  return op;
}

inline NamespaceOp TruncateOp(uint64_t id, uint64_t size) {
  NamespaceOp op = ObjectOp(OpKind::kTruncate, id);
  op.extent.offset = size;
  return op;
}

inline NamespaceOp AllocateOp(uint64_t id, uint32_t flags, uint64_t offset, uint64_t length) {
  NamespaceOp op = ObjectOp(OpKind::kAllocate, id);
  op.flags = flags;
  op.extent = {offset, length};
  return op;
}

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline uint64_t IdOf(const std::string& path) {
  uint64_t id = 0;
  return ::lgetxattr(path.c_str(), "trusted.pmirror.id", &id, sizeof id) == sizeof id ? id : 0;
}

// One line an object, also of orphans: path, type and mode, owner, links, id, size or target.
inline std::vector<std::string> Snapshot(const std::string& root) {
  std::vector<std::string> lines;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    struct stat info {};
    const std::string path = entry.path().string().substr(root.size());
    const bool own = path.starts_with("/.pmirror") && !path.starts_with("/.pmirror/orphans");
    if (::lstat(entry.path().c_str(), &info) != 0 || own) {
      continue;
    }
    std::ostringstream line;
    line << path << ' ' << std::oct << info.st_mode << std::dec << ' ' << info.st_uid << ':' << info.st_gid
         << " links " << (S_ISDIR(info.st_mode) ? 0 : info.st_nlink) << " id " << IdOf(entry.path())
         << " size " << (S_ISREG(info.st_mode) ? info.st_size : 0);
    if (S_ISLNK(info.st_mode)) {
      line << " -> " << std::filesystem::read_symlink(entry.path()).string();
    }
    lines.push_back(line.str());
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

}  // namespace pmirror::server
