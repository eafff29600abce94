// SPDX-License-Identifier: BSD-3-Clause
// The file and its replacement. See batch_journal.h.
#include "server/batch_journal.h"

#include "absl/strings/str_cat.h"
#include "recovery/batch.h"
#include "recovery/inventory.h"

namespace pmirror::server {

BatchJournal::BatchJournal(const std::string& backing, recovery::LogStorage& storage)
    : path_(absl::StrCat(backing, "/", recovery::kOwnDirectory, "/batch")),
      temporary_(path_ + ".new"),
      storage_(storage) {}

absl::StatusOr<std::optional<std::vector<std::byte>>> BatchJournal::Load() {
  if (absl::Status status = storage_.Remove(temporary_); !status.ok()) {
    return status;
  }
  absl::StatusOr<std::unique_ptr<recovery::LogFile>> file = storage_.Open(path_);
  if (absl::IsNotFound(file.status())) {
    return std::nullopt;
  }
  if (!file.ok()) {
    return file.status();
  }
  const absl::StatusOr<uint64_t> size = (*file)->Size();
  if (!size.ok()) {
    return size.status();
  }
  const absl::StatusOr<std::string> text = (*file)->Read(0, *size);
  if (!text.ok()) {
    return text.status();
  }
  const auto bytes = std::as_bytes(std::span(*text));
  if (const auto batch = recovery::BatchView::Parse(bytes); !batch.ok()) {
    return absl::DataLossError(absl::StrCat("the batch journal ", path_,
                                            " is damaged: ", batch.status().message(),
                                            "; only a resync makes this copy whole: remove the file"));
  }
  return std::vector<std::byte>(bytes.begin(), bytes.end());
}

absl::Status BatchJournal::Prepare(std::span<const std::byte> batch) {
  absl::StatusOr<std::unique_ptr<recovery::LogFile>> file = storage_.Create(temporary_);
  if (!file.ok()) {
    return file.status();
  }
  if (absl::Status status = (*file)->Write(0, batch); !status.ok()) {
    return status;
  }
  return (*file)->Sync();
}

absl::Status BatchJournal::Commit() {
  if (absl::Status status = storage_.Rename(temporary_, path_); !status.ok()) {
    return status;
  }
  return storage_.SyncDirectory(path_);
}

absl::Status BatchJournal::Remove() {
  for (const std::string& path : {temporary_, path_}) {
    if (absl::Status status = storage_.Remove(path); !status.ok()) {
      return status;
    }
  }
  return storage_.SyncDirectory(path_);
}

}  // namespace pmirror::server
