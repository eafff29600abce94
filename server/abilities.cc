// SPDX-License-Identifier: BSD-3-Clause
// Asking the machine, and the sentences about differences.
#include "server/abilities.h"

#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <bit>
#include <map>

namespace pmirror::server {
namespace {

std::map<std::string, std::string> Domains(const control::Abilities& abilities) {
  std::map<std::string, std::string> domains;
  for (const std::string& entry : abilities.persistence_domains()) {
    const size_t equals = entry.find('=');
    domains[entry.substr(0, equals)] = equals == std::string::npos ? "" : entry.substr(equals + 1);
  }
  return domains;
}

}  // namespace

const char* Name(Domain domain) {
  switch (domain) {
    case Domain::kVolatile:
      return "volatile";
    case Domain::kFile:
      return "file";
    case Domain::kPmem:
      return "pmem";
  }
  return "?";
}

const char* Name(OnLoss on_loss) {
  switch (on_loss) {
    case OnLoss::kSuspend:
      return "suspend";
    case OnLoss::kFail:
      return "fail";
    case OnLoss::kProceed:
      return "proceed";
  }
  return "?";
}

control::Abilities OwnAbilities(const Config& config) {
  control::Abilities abilities;
  abilities.set_version(kVersion);
  abilities.set_page_size(static_cast<uint32_t>(::sysconf(_SC_PAGESIZE)));
  if (const long line = ::sysconf(_SC_LEVEL1_DCACHE_LINESIZE); line > 0) {  // unknown in some guests
    abilities.set_cache_line(static_cast<uint32_t>(line));
  }
  abilities.set_big_endian(std::endian::native == std::endian::big);
  if (utsname names{}; ::uname(&names) == 0) {
    abilities.set_machine(names.machine);
  }
  for (const VolumeConfig& volume : config.volumes) {
    abilities.add_persistence_domains(fmt::format("{}={}", volume.name, Name(volume.domain)));
  }
  return abilities;
}

std::vector<std::string> CompareAbilities(const std::string& own_name, const control::Abilities& own,
                                          const std::string& peer_name, const control::Abilities& peer) {
  std::vector<std::string> warnings;
  const auto compare = [&](const char* what, const auto& mine, const auto& theirs, const char* hurt) {
    if (mine != theirs) {
      warnings.push_back(
          fmt::format("{} is {} on {} and {} on {}: {}", what, mine, own_name, theirs, peer_name, hurt));
    }
  };
  compare("page size", own.page_size(), peer.page_size(), "the nodes cannot replicate to each other");
  compare("byte order", own.big_endian() ? "big" : "little", peer.big_endian() ? "big" : "little",
          "programs cannot read their files after a failover");
  compare("machine type", own.machine(), peer.machine(),
          "programs may not be able to use their files after a failover");
  if (own.cache_line() != 0 && peer.cache_line() != 0) {
    compare("cache line size", own.cache_line(), peer.cache_line(),
            "programs that lay out their data by it may tear after a failover");
  }
  compare("version", own.version(), peer.version(), "finish the upgrade before you exchange roles");
  const std::map<std::string, std::string> theirs = Domains(peer);
  for (const auto& [volume, domain] : Domains(own)) {
    const auto found = theirs.find(volume);
    if (found != theirs.end()) {
      compare(fmt::format("persistence domain of volume {}", volume).c_str(), domain, found->second,
              "what an acknowledged sync survives changes with the primary");
    }
  }
  return warnings;
}

}  // namespace pmirror::server
