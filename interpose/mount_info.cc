// SPDX-License-Identifier: BSD-3-Clause
// proc(5): "... - type source options"; blanks in the source are written as octal escapes.
#include "interpose/mount_info.h"

#include <cstring>

namespace pmirror::interpose {
namespace {

constexpr char kMark[] = " - fuse.pmirror pmirror:";

bool IsOctal(char c) { return c >= '0' && c <= '7'; }

// Copies one field, undoing escapes. Returns false when it does not fit.
bool CopyField(const char* from, char* to, size_t room) {
  size_t used = 0;
  while (*from != '\0' && *from != ' ' && *from != '\n') {
    char c = *from++;
    if (c == '\\' && IsOctal(from[0]) && IsOctal(from[1]) && IsOctal(from[2])) {
      c = static_cast<char>((from[0] - '0') * 64 + (from[1] - '0') * 8 + (from[2] - '0'));
      from += 3;
    }
    if (used + 1 >= room) {
      return false;
    }
    to[used++] = c;
  }
  to[used] = '\0';
  return used > 0;
}

}  // namespace

bool FindSocketInMountInfo(const char* mountinfo, char* path, size_t room, bool& several) {
  several = false;
  bool found = false;
  for (const char* at = std::strstr(mountinfo, kMark); at != nullptr; at = std::strstr(at + 1, kMark)) {
    char other[108];
    if (!CopyField(at + sizeof(kMark) - 1, other, sizeof(other))) {
      continue;
    }
    if (!found && std::strlen(other) < room) {
      std::memcpy(path, other, std::strlen(other) + 1);
      found = true;
    } else if (found && std::strcmp(path, other) != 0) {
      several = true;
    }
  }
  return found;
}

}  // namespace pmirror::interpose
