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

std::string PathOf(const Config& config, const std::string& volume, const char* suffix) {
  return (DirectoryOf(config) / (volume + suffix)).string();
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

void ReadMembers(TomlSection& root, VolumeConfig& volume) {
  root.AllowOnly({"uuid", "nodes", "spares", "filling", "replacing"});
  const absl::StatusOr<Uuid> uuid = ParseUuid(root.String("uuid"));
  if (!uuid.ok() || *uuid != volume.uuid) {
    root.Wrong("uuid",
               fmt::format("is not that of volume {}; move this file away if the volume was made anew",
                           volume.name));
  }
  volume.nodes = root.Strings("nodes", 1);
  volume.spares = root.Strings("spares", 0);
  volume.filling = root.Strings("filling", 0);
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

// Names in a stable order, so that the same files always come to the same.
absl::StatusOr<std::vector<std::string>> StoredFiles(const Config& config) {
  std::vector<std::string> names;
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(DirectoryOf(config), error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    return absl::ErrnoToStatus(error.value(), fmt::format("cannot read {}", DirectoryOf(config).string()));
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

absl::Status LoadStored(Config& config) {
  const absl::StatusOr<std::vector<std::string>> names = StoredFiles(config);
  if (!names.ok()) {
    return names.status();
  }
  for (const std::string& name : *names) {
    if (name.ends_with(kVolumeSuffix) && !name.ends_with(kMembersSuffix)) {
      const std::string path = (DirectoryOf(config) / name).string();
      const absl::StatusOr<std::string> text = ReadText(path);
      absl::Status status = text.ok() ? AddVolume(*text, path, config) : text.status();
      if (!status.ok()) {
        return status;
      }
    }
  }
  for (VolumeConfig& volume : config.volumes) {
    const std::string path = PathOf(config, volume.name, kMembersSuffix);
    if (!std::filesystem::exists(path)) {
      continue;
    }
    const absl::StatusOr<std::string> text = ReadText(path);
    absl::Status status =
        text.ok() ? ReadToml(*text, path, [&](TomlSection& root, TomlErrors&) { ReadMembers(root, volume); })
                  : text.status();
    if (!status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status StoreVolume(const Config& config, const VolumeConfig& volume) {
  absl::Status status = MakeDirectory(config);
  return status.ok() ? recovery::ReplaceFile(PathOf(config, volume.name, kVolumeSuffix),
                                             kWritten + ToToml(volume), "volume file")
                     : status;
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
      PathOf(config, volume.name, kMembersSuffix),
      fmt::format("{}uuid = {}\nnodes = {}\nspares = {}\nfilling = {}\nreplacing = {}\n", kWritten,
                  TomlText(recovery::UuidText(volume.uuid)), TomlText(volume.nodes), TomlText(volume.spares),
                  TomlText(volume.filling), TomlText(replacing)),
      "members file");
}

absl::Status ForgetVolume(const Config& config, const VolumeConfig& volume) {
  for (const char* suffix : {kVolumeSuffix, kMembersSuffix}) {
    std::error_code error;
    std::filesystem::remove(PathOf(config, volume.name, suffix), error);
    if (error) {
      return absl::ErrnoToStatus(error.value(),
                                 fmt::format("cannot remove {}", PathOf(config, volume.name, suffix)));
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
    if (!node.empty()) {
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
