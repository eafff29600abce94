// SPDX-License-Identifier: BSD-3-Clause
// The file of a mark map. See mark_log.h.
#include "recovery/mark_log.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "replication/crc32c.h"

namespace pmirror::recovery {
namespace {

static_assert(std::endian::native == std::endian::little, "the structs below are the file");

constexpr size_t kBlock = MarkLog::kBlock;
constexpr size_t kHeadAt = 2 * kBlock;
constexpr size_t kBatchesAt = 3 * kBlock;
constexpr uint32_t kVersion = 1;
constexpr uint32_t kAckMagic = 0x6b63616d;    // "mack"
constexpr uint32_t kHeadMagic = 0x64686d70;   // "pmhd"
constexpr uint32_t kBatchMagic = 0x7461626d;  // "mbat"
constexpr uint64_t kFirstSequence = 1;
// A file that is shorter than this is not worth replacing: 256 marks that came one by one.
constexpr uint64_t kSmallFile = 256 * kBlock;

// Every struct begins with its magic number and the CRC of its blocks.
struct AckBlock {
  uint32_t magic = kAckMagic;
  uint32_t crc = 0;
  uint64_t incarnation = 0;
  uint64_t sequence = 0;  // this batch and all before were durable when the block was written
};
static_assert(sizeof(AckBlock) == 24);

struct HeadBlock {
  uint32_t magic = kHeadMagic;
  uint32_t crc = 0;
  uint32_t version = kVersion;
  uint32_t replicas = 0;  // names that follow
  uint64_t incarnation = 0;
  uint64_t generation = 0;
  uint64_t mount_number = 0;
  std::byte volume[16] = {};
};
static_assert(sizeof(HeadBlock) == 56);
static_assert(sizeof(HeadBlock) + kMaxReplicas * (1 + kMaxNameBytes) <= kBlock);

struct BatchHeader {
  uint32_t magic = kBatchMagic;
  uint32_t crc = 0;
  uint64_t incarnation = 0;
  uint64_t sequence = 0;  // by one more than that of the batch before
  uint64_t records = 0;
};
static_assert(sizeof(BatchHeader) == 32);
constexpr size_t kCrcAt = 4;  // in all of them

constexpr size_t BatchBytes(size_t records) {
  return (sizeof(BatchHeader) + records * sizeof(MarkRecord) + kBlock - 1) / kBlock * kBlock;
}
constexpr size_t kMaxAppendedBytes = BatchBytes(MarkLog::kMaxAppended);

template <typename T>
T At(const std::string& image, size_t offset) {
  T value;
  std::memcpy(&value, image.data() + offset, sizeof(value));
  return value;
}

uint32_t CrcOf(const std::string& image, size_t offset, size_t length) {
  static constexpr std::byte kZero[sizeof(uint32_t)] = {};
  const std::span bytes = std::as_bytes(std::span(image)).subspan(offset, length);
  const uint32_t head = Crc32c(Crc32c(0, bytes.first(kCrcAt)), kZero);
  return Crc32c(head, bytes.subspan(kCrcAt + sizeof(uint32_t)));
}

// Fills what begins with a magic number and a CRC up to whole blocks, and its CRC in.
std::string Sealed(std::string image) {
  image.resize((image.size() + kBlock - 1) / kBlock * kBlock, '\0');
  const uint32_t crc = CrcOf(image, 0, image.size());
  std::memcpy(image.data() + kCrcAt, &crc, sizeof(crc));
  return image;
}

bool Good(const std::string& image, size_t offset, size_t length, uint32_t magic) {
  return At<uint32_t>(image, offset) == magic &&
         At<uint32_t>(image, offset + kCrcAt) == CrcOf(image, offset, length);
}

template <typename T>
std::string BytesOf(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

std::string AckImage(uint64_t incarnation, uint64_t sequence) {
  return Sealed(BytesOf(AckBlock{.incarnation = incarnation, .sequence = sequence}));
}

std::string HeadImage(const MarkState& state, uint64_t incarnation) {
  HeadBlock head{.replicas = static_cast<uint32_t>(state.identity.replicas.size()),
                 .incarnation = incarnation,
                 .generation = state.identity.generation,
                 .mount_number = state.mount_number};
  std::copy(state.identity.volume.begin(), state.identity.volume.end(), head.volume);
  std::string image = BytesOf(head);
  for (const std::string& name : state.identity.replicas) {
    image += static_cast<char>(name.size());
    image += name;
  }
  return Sealed(std::move(image));
}

std::string BatchImage(uint64_t incarnation, uint64_t sequence, std::span<const MarkRecord> records) {
  std::string image =
      BytesOf(BatchHeader{.incarnation = incarnation, .sequence = sequence, .records = records.size()});
  image.append(reinterpret_cast<const char*>(records.data()), records.size_bytes());
  return Sealed(std::move(image));
}

std::vector<MarkRecord> RecordsOf(const MarkState& state) {
  std::vector<MarkRecord> records;
  records.reserve(state.files.size() + 2 * state.replicas.size());
  for (size_t i = 0; i < state.replicas.size(); ++i) {
    const auto bit = static_cast<uint8_t>(1U << i);
    if (state.replicas[i].all) {
      records.push_back({.kind = MarkRecordKind::kAll, .replicas = bit});
    }
    if (state.replicas[i].base_mount != 0) {
      records.push_back(
          {.kind = MarkRecordKind::kBase, .replicas = bit, .value = state.replicas[i].base_mount});
    }
  }
  for (const auto& [file, replicas] : state.files) {
    records.push_back({.kind = MarkRecordKind::kMark, .replicas = replicas, .value = Raw(file)});
  }
  return records;
}

// Reads a whole image. What it cannot accept it says in `damage`.
class Reader {
 public:
  explicit Reader(const std::string& image) : image_(image) {}

  absl::StatusOr<MarkState> Read() {
    if (!ReadHead() || !ReadAcknowledged() || !ReadBatches()) {
      return absl::DataLossError(damage_);
    }
    state_.files.assign(files_.begin(), files_.end());
    return state_;
  }

 private:
  bool Damaged(std::string what) {
    damage_ = std::move(what);
    return false;
  }

  bool ReadHead() {
    if (image_.size() < kBatchesAt) {
      return Damaged("it is shorter than its head");
    }
    const auto head = At<HeadBlock>(image_, kHeadAt);
    if (!Good(image_, kHeadAt, kBlock, kHeadMagic)) {
      return Damaged("the checksum of its head does not fit");
    }
    if (head.version != kVersion) {
      return Damaged(absl::StrCat("it is of version ", head.version, ", this program knows ", kVersion));
    }
    if (head.replicas > kMaxReplicas) {
      return Damaged("its head has too many replicas");
    }
    incarnation_ = head.incarnation;
    state_.identity.generation = head.generation;
    state_.mount_number = head.mount_number;
    std::copy(std::begin(head.volume), std::end(head.volume), state_.identity.volume.begin());
    // No bound is passed: the block has room for the longest names, see the static_assert.
    for (size_t i = 0, at = kHeadAt + sizeof(head); i < head.replicas; ++i) {
      const size_t length = At<uint8_t>(image_, at);
      state_.identity.replicas.push_back(image_.substr(at + 1, length));
      at += 1 + length;
    }
    state_.replicas.resize(head.replicas);
    return true;
  }

  bool ReadAcknowledged() {
    for (const size_t offset : {size_t{0}, kBlock}) {
      const auto ack = At<AckBlock>(image_, offset);
      if (Good(image_, offset, kBlock, kAckMagic) && ack.incarnation == incarnation_) {
        acknowledged_ = std::max(acknowledged_, ack.sequence);
      }
    }
    return acknowledged_ != 0 || Damaged("both of its acknowledgements are unreadable");
  }

  // The header of the batch at `offset`; none when no whole batch of this file is there.
  std::optional<BatchHeader> BatchAt(size_t offset) const {
    if (image_.size() - offset < kBlock) {
      return std::nullopt;
    }
    const auto header = At<BatchHeader>(image_, offset);
    if (header.magic != kBatchMagic || header.incarnation != incarnation_ ||
        header.records > image_.size() / sizeof(MarkRecord)) {
      return std::nullopt;
    }
    const size_t length = BatchBytes(header.records);
    return length <= image_.size() - offset && Good(image_, offset, length, kBatchMagic)
               ? std::optional(header)
               : std::nullopt;
  }

  bool ReadBatches() {
    size_t at = kBatchesAt;
    uint64_t sequence = 0;
    for (auto header = BatchAt(at); header && header->sequence == sequence + 1; header = BatchAt(at)) {
      if (!Apply(at + sizeof(BatchHeader), header->records)) {
        return Damaged(absl::StrCat("batch ", header->sequence, " holds what cannot be"));
      }
      sequence = header->sequence;
      at += BatchBytes(header->records);
    }
    if (sequence < acknowledged_) {
      return Damaged(absl::StrCat("batch ", sequence + 1, " of ", acknowledged_,
                                  " that were acknowledged is missing or damaged"));
    }
    return TornOnly(at, sequence);
  }

  // What follows the last good batch is no more than one that was never acknowledged.
  bool TornOnly(size_t at, uint64_t last) {
    if (image_.size() - at > kMaxAppendedBytes) {
      return Damaged(absl::StrCat("more than one batch is unreadable behind batch ", last));
    }
    for (; at < image_.size(); at += kBlock) {
      if (const auto header = BatchAt(at); header && header->sequence > last + 1) {
        return Damaged(
            absl::StrCat("batch ", last + 1, " is damaged, and batch ", header->sequence, " follows"));
      }
    }
    return true;
  }

  bool Apply(size_t at, size_t records) {
    for (size_t i = 0; i < records; ++i) {
      if (!ApplyOne(At<MarkRecord>(image_, at + i * sizeof(MarkRecord)))) {
        return false;
      }
    }
    return true;
  }

  bool ApplyOne(const MarkRecord& record) {
    const bool file = record.kind == MarkRecordKind::kMark || record.kind == MarkRecordKind::kClear;
    const bool valued = file || record.kind == MarkRecordKind::kBase;
    if (record.replicas == 0 || record.replicas >> state_.replicas.size() != 0 ||
        valued != (record.value != 0) || std::ranges::any_of(record.zero, [](uint8_t b) { return b != 0; })) {
      return false;
    }
    switch (record.kind) {
      case MarkRecordKind::kMark:
        files_[FileId{record.value}] |= record.replicas;
        return true;
      case MarkRecordKind::kClear:
        if (const auto found = files_.find(FileId{record.value}); found != files_.end()) {
          found->second &= static_cast<uint8_t>(~record.replicas);
          if (found->second == 0) {
            files_.erase(found);
          }
        }
        return true;
      case MarkRecordKind::kAll:
      case MarkRecordKind::kNotAll:
        EachOf(record.replicas, [&](auto& r) { r.all = record.kind == MarkRecordKind::kAll; });
        return true;
      case MarkRecordKind::kBase:
        EachOf(record.replicas, [&](auto& r) { r.base_mount = record.value; });
        return record.value <= state_.mount_number;
    }
    return false;
  }

  template <typename Function>
  void EachOf(uint8_t replicas, Function&& function) {
    for (size_t i = 0; i < state_.replicas.size(); ++i) {
      if ((replicas >> i & 1) != 0) {
        function(state_.replicas[i]);
      }
    }
  }

  const std::string& image_;
  MarkState state_;
  std::map<FileId, uint8_t> files_;
  uint64_t incarnation_ = 0;
  uint64_t acknowledged_ = 0;
  std::string damage_;
};

std::span<const std::byte> Bytes(const std::string& image) { return std::as_bytes(std::span(image)); }

}  // namespace

absl::StatusOr<MarkState> MarkLog::Load(LogStorage& storage, const std::string& path) {
  auto file = storage.Open(path);
  if (!file.ok()) {
    return file.status();
  }
  const auto size = (*file)->Size();
  if (!size.ok()) {
    return size.status();
  }
  if (*size > kMaxFile) {
    return absl::DataLossError(absl::StrCat("it has ", *size, " bytes, more than a map can have"));
  }
  const auto image = (*file)->Read(0, *size);
  return image.ok() ? Reader(*image).Read() : image.status();
}

bool MarkLog::CanAppend(size_t records) const { return file_ != nullptr && records <= kMaxAppended; }

bool MarkLog::WantsReplace(size_t records) const {
  return !CanAppend(records) || end_ + BatchBytes(records) > replace_at_;
}

absl::Status MarkLog::Append(std::span<const MarkRecord> records) {
  const std::string image = BatchImage(incarnation_, sequence_ + 1, records);
  absl::Status status = file_->Write(end_, Bytes(image));
  if (status.ok()) {
    status = file_->Sync();
  }
  if (!status.ok()) {
    file_.reset();
    return status;
  }
  end_ += image.size();
  ++sequence_;
  // By turns: while one is on its way to the disk the other says what was durable before. That the batch is
  // durable does not depend on it, but a file that refuses a write is not used further.
  const uint64_t offset = sequence_ % 2 == 0 ? 0 : kBlock;
  if (!file_->Write(offset, Bytes(AckImage(incarnation_, sequence_))).ok()) {
    file_.reset();
  }
  return absl::OkStatus();
}

absl::Status MarkLog::Replace(const MarkState& state) {
  const std::string temporary = path_ + ".new";
  std::random_device random;
  const uint64_t incarnation = uint64_t{random()} << 32 | random();
  const std::string image = AckImage(incarnation, kFirstSequence) + AckImage(incarnation, kFirstSequence) +
                            HeadImage(state, incarnation) +
                            BatchImage(incarnation, kFirstSequence, RecordsOf(state));
  auto file = WriteNew(temporary, image);
  if (!file.ok()) {
    (void)storage_.Remove(temporary);  // for the room that it takes
    replace_at_ = 2 * end_;            // not at every batch, where the old file still does
    return file.status();
  }
  file_.reset();  // from here on nobody knows which of the two a crash would leave
  absl::Status status = storage_.Rename(temporary, path_);
  if (status.ok()) {
    status = storage_.SyncDirectory(path_);
  }
  if (status.ok()) {
    file_ = *std::move(file);
    incarnation_ = incarnation;
    sequence_ = kFirstSequence;
    end_ = image.size();
    replace_at_ = kSmallFile + 4 * end_;
  }
  return status;
}

absl::StatusOr<std::unique_ptr<LogFile>> MarkLog::WriteNew(const std::string& path,
                                                           const std::string& image) {
  if (image.size() > kMaxFile) {
    return absl::ResourceExhaustedError(absl::StrCat(path, " would have ", image.size(), " bytes"));
  }
  auto file = storage_.Create(path);
  if (!file.ok()) {
    return file.status();
  }
  absl::Status status = (*file)->Write(0, Bytes(image));
  if (status.ok()) {
    status = (*file)->Sync();
  }
  return status.ok() ? std::move(file) : status;
}

absl::Status MarkLog::Close() { return file_ == nullptr ? absl::OkStatus() : file_->Sync(); }

}  // namespace pmirror::recovery
