// SPDX-License-Identifier: BSD-3-Clause
// Reading and writing of volume records. See volume_record.h.
#include "recovery/volume_record.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "fmt/format.h"
#include "recovery/replace_file.h"
#include "replication/crc32c.h"
#include "replication/unique_fd.h"

namespace pmirror::recovery {
namespace {

constexpr char kFirstLine[] = "pmirror copy record 4";
constexpr size_t kMaxBytes = 4096;

std::string Body(const VolumeRecord& record) {
  return fmt::format(
      "{}\nvolume {}\ngeneration {}\nepoch {}\nmount_number {}\noperation {}\nclean {}\nresyncing "
      "{}\nundo {}\nrolled_back {}\ntrailing {}\nboot {}\n",
      kFirstLine, UuidText(record.volume), record.generation, Raw(record.epoch), record.mount_number,
      record.operation, record.clean ? 1 : 0, record.resyncing ? 1 : 0, record.undo,
      record.rolled_back ? 1 : 0, record.trailing ? 1 : 0, record.boot.empty() ? "unknown" : record.boot);
}

std::string Checksum(const std::string& body) {
  return fmt::format("crc32c {:08x}\n", Crc32c(0, std::as_bytes(std::span(body))));
}

absl::Status Corrupt(const std::string& path, const std::string& what) {
  return absl::DataLossError(
      absl::StrCat("copy record ", path, ": ", what,
                   "; restore the file, or remove it and the copy so that the volume is copied anew"));
}

// The values of the lines in the order of Body().
std::optional<VolumeRecord> Parse(const std::vector<std::string>& values) {
  VolumeRecord record;
  const std::optional<Uuid> volume = ParseUuid(values[0]);
  uint64_t epoch = 0;
  uint64_t clean = 0;
  uint64_t resyncing = 0;
  uint64_t rolled_back = 0;
  uint64_t trailing = 0;
  if (!volume || !absl::SimpleAtoi(values[1], &record.generation) || !absl::SimpleAtoi(values[2], &epoch) ||
      !absl::SimpleAtoi(values[3], &record.mount_number) || !absl::SimpleAtoi(values[4], &record.operation) ||
      !absl::SimpleAtoi(values[5], &clean) || !absl::SimpleAtoi(values[6], &resyncing) ||
      !absl::SimpleAtoi(values[7], &record.undo) || !absl::SimpleAtoi(values[8], &rolled_back) ||
      !absl::SimpleAtoi(values[9], &trailing)) {
    return std::nullopt;
  }
  record.volume = *volume;
  record.epoch = Epoch{epoch};
  record.clean = clean != 0;
  record.resyncing = resyncing != 0;
  record.rolled_back = rolled_back != 0;
  record.trailing = trailing != 0;
  record.boot = values[10];
  return record;
}

}  // namespace

absl::StatusOr<std::optional<VolumeRecord>> LoadVolumeRecord(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    return errno == ENOENT ? absl::StatusOr<std::optional<VolumeRecord>>(std::nullopt)
                           : absl::ErrnoToStatus(errno, absl::StrCat("open replica record ", path));
  }
  std::string text(kMaxBytes + 1, '\0');
  size_t length = 0;
  for (ssize_t got = 1; got != 0 && length < text.size();) {
    got = ::read(fd.get(), text.data() + length, text.size() - length);
    if (got < 0 && errno != EINTR) {
      return absl::ErrnoToStatus(errno, absl::StrCat("read replica record ", path));
    }
    length += got > 0 ? static_cast<size_t>(got) : 0;
  }
  text.resize(length);
  static constexpr std::array<const char*, 11> kKeys = {
      "volume",    "generation", "epoch",       "mount_number", "operation", "clean",
      "resyncing", "undo",       "rolled_back", "trailing",     "boot"};
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  if (lines.front() != kFirstLine) {
    return Corrupt(path, "line 1: not a replica record of this version");
  }
  std::vector<std::string> values;
  for (size_t i = 0; i < kKeys.size(); ++i) {
    const std::vector<std::string> words = absl::StrSplit(i + 1 < lines.size() ? lines[i + 1] : "", ' ');
    if (words.size() != 2 || words[0] != kKeys[i]) {
      return Corrupt(path, absl::StrCat("line ", i + 2, ": '", kKeys[i], " VALUE' expected"));
    }
    values.push_back(words[1]);
  }
  const std::optional<VolumeRecord> record = Parse(values);
  if (!record || text != Body(*record) + Checksum(Body(*record))) {
    return Corrupt(path, "line 13: the checksum does not fit");
  }
  return record;
}

absl::Status StoreVolumeRecord(const std::string& path, const VolumeRecord& record) {
  const std::string body = Body(record);
  return ReplaceFile(path, body + Checksum(body), "replica record");
}

std::string BootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

std::string UuidText(const Uuid& uuid) {
  std::string text;
  for (size_t i = 0; i < uuid.size(); ++i) {
    text += fmt::format("{}{:02x}", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                        std::to_integer<int>(uuid[i]));
  }
  return text;
}

std::optional<Uuid> ParseUuid(const std::string& text) {
  Uuid uuid{};
  std::string digits;
  for (const char c : text) {
    if (c != '-') {
      digits += c;
    }
  }
  if (digits.size() != 2 * uuid.size()) {
    return std::nullopt;
  }
  for (size_t i = 0; i < uuid.size(); ++i) {
    unsigned value = 0;
    if (!absl::SimpleHexAtoi(digits.substr(2 * i, 2), &value)) {
      return std::nullopt;
    }
    uuid[i] = static_cast<std::byte>(value);
  }
  return UuidText(uuid) == text ? std::optional(uuid) : std::nullopt;
}

}  // namespace pmirror::recovery
