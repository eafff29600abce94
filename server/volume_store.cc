// SPDX-License-Identifier: BSD-3-Clause
// See volume_store.h.
#include "server/volume_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <vector>

#include "absl/strings/numbers.h"
#include "recovery/replace_file.h"
#include "recovery/volume_record.h"
#include "server/abilities.h"
#include "server/config_values.h"
#include "server/toml_section.h"

namespace pmirror::server {
namespace {

constexpr char kVolumeSuffix[] = ".toml";
constexpr char kMembersSuffix[] = ".members.toml";
constexpr char kWritten[] =
    "# Written by pmirrord; it is changed by `pmirror volume` and `pmirror replica`.\n";

std::filesystem::path DirectoryOf(const Config& config) { return config.state_dir / "volumes"; }

std::string MembersPath(const Config& config, const std::string& volume) {
  return (DirectoryOf(config) / (volume + kMembersSuffix)).string();
}

absl::Status MakeDirectory(const Config& config) {
  std::error_code error;
  std::filesystem::create_directories(DirectoryOf(config), error);
  return error
             ? absl::ErrnoToStatus(error.value(), fmt::format("cannot make {}", DirectoryOf(config).string()))
             : absl::OkStatus();
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in.is_open() || in.bad()) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot read {}", path));
  }
  return text;
}

void ReadMembers(TomlSection& root, const Config& config, VolumeConfig& volume) {
  root.AllowOnly({"uuid", "nodes", "spares", "filling", "replacing"});
  const absl::StatusOr<Uuid> uuid = ParseUuid(root.String("uuid"));
  if (!uuid.ok() || *uuid != volume.uuid) {
    root.Wrong("uuid",
               fmt::format("is not that of volume {}; move this file away if the volume was made anew",
                           volume.name));
  }
  const auto read = [&](const char* key, size_t least) {
    std::vector<std::string> nodes = root.Strings(key, least);
    for (size_t i = 0; i < nodes.size(); ++i) {
      // Only the primary has to reach them all.
      if (volume.primary == config.name && nodes[i] != config.name && config.Peer(nodes[i]) == nullptr) {
        root.WrongEntry(key, i,
                        fmt::format("is no [[node]] of {} any more; add it there again", config.file));
      }
    }
    return nodes;
  };
  volume.nodes = read("nodes", 1);
  volume.spares = read("spares", 0);
  volume.filling = read("filling", 0);
  volume.replacing.clear();
  for (const std::string& pair : root.Strings("replacing", 0)) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos) {
      root.Wrong("replacing", "is no list of OLD=NEW");
    } else {
      volume.replacing[pair.substr(0, equals)] = pair.substr(equals + 1);
    }
  }
}

struct VolumeFile {
  uint64_t number = 0;
  std::string name;  // of the volume
  std::string path;
};

// In the order of their making.
absl::StatusOr<std::vector<VolumeFile>> VolumeFiles(const Config& config) {
  std::vector<VolumeFile> files;
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(DirectoryOf(config), error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string file = entry->path().filename().string();
    const size_t dash = file.find('-');
    uint64_t number = 0;
    if (!file.ends_with(kVolumeSuffix) || file.ends_with(kMembersSuffix)) {
      continue;
    }
    if (dash == std::string::npos || !absl::SimpleAtoi(file.substr(0, dash), &number)) {
      return absl::InvalidArgumentError(
          fmt::format("{} is no NUMBER-NAME.toml; name it so, or move it away", entry->path().string()));
    }
    const size_t length = file.size() - dash - 1 - std::string_view(kVolumeSuffix).size();
    files.push_back({number, file.substr(dash + 1, length), entry->path().string()});
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    return absl::ErrnoToStatus(error.value(), fmt::format("cannot read {}", DirectoryOf(config).string()));
  }
  std::sort(files.begin(), files.end(),
            [](const VolumeFile& a, const VolumeFile& b) { return a.number < b.number; });
  return files;
}

// Where the volume stands, or is to stand: behind those that there are.
absl::StatusOr<std::string> VolumePath(const Config& config, const std::string& volume, bool& stands) {
  const absl::StatusOr<std::vector<VolumeFile>> files = VolumeFiles(config);
  if (!files.ok()) {
    return files.status();
  }
  for (const VolumeFile& file : *files) {
    if (file.name == volume) {
      stands = true;
      return file.path;
    }
  }
  stands = false;
  const uint64_t number = files->empty() ? 1 : files->back().number + 1;
  return (DirectoryOf(config) / fmt::format("{:04}-{}{}", number, volume, kVolumeSuffix)).string();
}

}  // namespace

absl::Status LoadStored(Config& config) {
  const absl::StatusOr<std::vector<VolumeFile>> files = VolumeFiles(config);
  if (!files.ok()) {
    return files.status();
  }
  for (const VolumeFile& file : *files) {
    const absl::StatusOr<std::string> text = ReadText(file.path);
    absl::Status status = text.ok() ? AddVolume(*text, file.path, config) : text.status();
    if (!status.ok()) {
      return status;
    }
  }
  for (VolumeConfig& volume : config.volumes) {
    const std::string path = MembersPath(config, volume.name);
    if (!std::filesystem::exists(path)) {
      continue;
    }
    const absl::StatusOr<std::string> text = ReadText(path);
    absl::Status status =
        text.ok() ? ReadToml(*text, path,
                             [&](TomlSection& root, TomlErrors&) { ReadMembers(root, config, volume); })
                  : text.status();
    if (!status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status StoreVolume(const Config& config, const VolumeConfig& volume) {
  if (absl::Status status = MakeDirectory(config); !status.ok()) {
    return status;
  }
  bool stands = false;
  const absl::StatusOr<std::string> path = VolumePath(config, volume.name, stands);
  return path.ok() ? recovery::ReplaceFile(*path, kWritten + ToToml(volume), "volume file") : path.status();
}

absl::Status StoreMembers(const Config& config, const VolumeConfig& volume) {
  if (absl::Status status = MakeDirectory(config); !status.ok()) {
    return status;
  }
  std::vector<std::string> replacing;
  for (const auto& [old, fresh] : volume.replacing) {
    replacing.push_back(fmt::format("{}={}", old, fresh));
  }
  return recovery::ReplaceFile(
      MembersPath(config, volume.name),
      fmt::format("{}uuid = {}\nnodes = {}\nspares = {}\nfilling = {}\nreplacing = {}\n", kWritten,
                  TomlText(recovery::UuidText(volume.uuid)), TomlText(volume.nodes), TomlText(volume.spares),
                  TomlText(volume.filling), TomlText(replacing)),
      "members file");
}

absl::StatusOr<bool> IsStored(const Config& config, const VolumeConfig& volume) {
  bool stands = false;
  const absl::StatusOr<std::string> path = VolumePath(config, volume.name, stands);
  return path.ok() ? absl::StatusOr<bool>(stands) : path.status();
}

absl::Status ForgetVolume(const Config& config, const VolumeConfig& volume) {
  bool stands = false;
  const absl::StatusOr<std::string> path = VolumePath(config, volume.name, stands);
  if (!path.ok()) {
    return path.status();
  }
  for (const std::string& file : {*path, MembersPath(config, volume.name)}) {
    if (absl::Status status = recovery::RemoveFile(file); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

bool HoldsCopy(const Config& config, const VolumeConfig& volume) {
  return volume.HasNode(config.name) ||
         std::find(volume.spares.begin(), volume.spares.end(), config.name) != volume.spares.end();
}

std::string ToToml(const VolumeConfig& volume) {
  const auto time = [](std::chrono::nanoseconds value) {
    return TomlText(
        fmt::format("{}us", std::chrono::duration_cast<std::chrono::microseconds>(value).count()));
  };
  std::vector<std::string> rpo;
  OnLag on_lag = OnLag::kThrottle;
  for (const auto& [node, of] : volume.rpo_of) {
    on_lag = of.on_lag;
    // Of those that may have a copy: another one may have left since it was configured.
    if (volume.HasNode(node) ||
        std::find(volume.spares.begin(), volume.spares.end(), node) != volume.spares.end()) {
      rpo.push_back(fmt::format("{}={}", node, of.text));
    }
  }
  return fmt::format(
      "[[volume]]\nname = {}\nuuid = {}\nbacking = {}\nmount = {}\nnodes = {}\nprimary = {}\nspares = "
      "{}\nspare_after = {}\n"
      "rpo = {}\nreplica_rpo = {}\non_lag = {}\non_loss = {}\ndeadline = {}\nsuspend = {}\ndomain = "
      "{}\ncheck = {}\ncredit = {}\n",
      TomlText(volume.name), TomlText(recovery::UuidText(volume.uuid)), TomlText(volume.backing.string()),
      TomlText(volume.mount.string()), TomlText(volume.nodes), TomlText(volume.primary),
      TomlText(volume.spares), time(volume.spare_after), TomlText(volume.rpo), TomlText(rpo),
      TomlText(on_lag == OnLag::kProceed ? "proceed" : "throttle"), TomlText(Name(volume.on_loss)),
      time(volume.deadline), time(volume.suspend), TomlText(Name(volume.domain)),
      volume.check.count() == 0 ? TomlText("off") : time(volume.check),
      TomlText(std::to_string(volume.credit)));
}

}  // namespace pmirror::server
