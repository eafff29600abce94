// SPDX-License-Identifier: BSD-3-Clause
// See program_search.h.
#include "fs/program_search.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cctype>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "replication/types.h"

namespace pmirror::fs {
namespace {

// A line of /proc/PID/maps.
struct MapsLine {
  uintptr_t start = 0;
  uintptr_t end = 0;
  uint64_t offset = 0;
  bool shared = false;
  std::string path;
};

bool Parse(const std::string& text, MapsLine& line) {
  char rights[5] = {};
  int path_at = 0;
  if (std::sscanf(text.c_str(), "%" SCNxPTR "-%" SCNxPTR " %4s %" SCNx64 " %*s %*s %n", &line.start,
                  &line.end, rights, &line.offset, &path_at) < 4) {
    return false;
  }
  line.shared = rights[3] == 's';
  line.path = path_at > 0 && static_cast<size_t>(path_at) < text.size()
                  ? text.substr(static_cast<size_t>(path_at))
                  : std::string();
  return true;
}

// The link that leads to what is mapped there, whatever has become of its name.
std::string MapFile(const std::string& process, const MapsLine& line) {
  char name[64];
  std::snprintf(name, sizeof(name), "/map_files/%" PRIxPTR "-%" PRIxPTR, line.start, line.end);
  return process + name;
}

void AddMapping(const std::string& process, const MapsLine& line, absl::FunctionRef<bool(dev_t)> wanted,
                FoundProgram& program) {
  const std::string link = MapFile(process, line);
  struct stat target {};
  struct stat own {};
  if (::stat(link.c_str(), &target) != 0 || !S_ISREG(target.st_mode) || !wanted(target.st_dev) ||
      ::lstat(link.c_str(), &own) != 0) {
    return;
  }
  // The link has the rights of the descriptor that was mapped.
  const bool writable = (own.st_mode & S_IWUSR) != 0;
  UniqueFd file(::open(link.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK));
  if (file.valid()) {
    program.mappings.push_back({.address = line.start,
                                .length = line.end - line.start,
                                .offset = line.offset,
                                .writable = writable,
                                .file = std::move(file)});
  }
}

bool LookAt(pid_t pid, absl::FunctionRef<bool(dev_t)> wanted, FoundProgram& program) {
  const std::string process = "/proc/" + std::to_string(pid);
  // First: a pid that is used again later is found to be over.
  program.pid = pid;
  program.process.Reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  program.pagemap.Reset(::open((process + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
  struct stat owner {};
  if (!program.process.valid() || !program.pagemap.valid() || ::stat(process.c_str(), &owner) != 0) {
    return false;
  }
  program.uid = owner.st_uid;
  std::ifstream maps(process + "/maps");
  std::vector<MapsLine> shared;
  for (std::string text; std::getline(maps, text);) {
    MapsLine line;
    if (!Parse(text, line) || !line.shared) {
      continue;
    }
    if (line.path.find(kTicketTableName) != std::string::npos) {
      program.tickets.Reset(::open(MapFile(process, line).c_str(), O_RDWR | O_CLOEXEC));
    } else {
      shared.push_back(std::move(line));
    }
  }
  for (size_t i = 0; program.tickets.valid() && i < shared.size(); ++i) {
    AddMapping(process, shared[i], wanted, program);
  }
  return !program.mappings.empty();
}

}  // namespace

std::vector<FoundProgram> FindPrograms(absl::FunctionRef<bool(dev_t)> wanted) {
  std::vector<FoundProgram> found;
  const std::unique_ptr<DIR, int (*)(DIR*)> processes(::opendir("/proc"), &::closedir);
  while (const dirent* entry = processes == nullptr ? nullptr : ::readdir(processes.get())) {
    const std::string name = entry->d_name;
    pid_t pid = 0;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (parsed.ec != std::errc() || parsed.ptr != name.data() + name.size() || pid == ::getpid()) {
      continue;
    }
    FoundProgram program;
    if (LookAt(pid, wanted, program)) {
      found.push_back(std::move(program));
    }
  }
  return found;
}

bool AddressSpaceLives(int pagemap, uintptr_t address) {
  uint64_t entry = 0;
  return ::pread(pagemap, &entry, sizeof(entry), static_cast<off_t>(address / kPageSize * sizeof(entry))) ==
         static_cast<ssize_t>(sizeof(entry));
}

}  // namespace pmirror::fs
