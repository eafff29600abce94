// SPDX-License-Identifier: BSD-3-Clause
// The persistence domains. See persistence.h.
#include "server/persistence.h"

#include <libpmem.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

namespace pmirror::server {
namespace {

// One system call for the whole file system is cheaper than this many for files.
constexpr size_t kFilesForOneSyncfs = 64;

constexpr size_t kWord = 8;

// Bytes before the first whole aligned word of [offset, offset + length), and in whole words behind them.
struct Words {
  Words(uint64_t offset, size_t length)
      : head(std::min<size_t>(-offset % kWord, length)), whole((length - head) / kWord * kWord) {}
  size_t head;
  size_t whole;
};

// The kernel copies each element of the vector by itself. A copy that begins in the middle of a word was
// measured to tear the words behind it for somebody who reads at the same time (promise P2), as writeback may
// do.
int WriteAll(int fd, const std::byte* from, size_t length, uint64_t offset) {
  while (length > 0) {
    const Words words(offset, length);
    auto* const base = const_cast<std::byte*>(from);
    const iovec parts[3] = {{base, words.head},
                            {base + words.head, words.whole},
                            {base + words.head + words.whole, length - words.head - words.whole}};
    const ssize_t written = words.whole == length ? ::pwrite(fd, from, length, static_cast<off_t>(offset))
                                                  : ::pwritev(fd, parts, 3, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return written == 0 ? EIO : errno;
    }
    from += written;
    length -= static_cast<size_t>(written);
    offset += static_cast<uint64_t>(written);
  }
  return 0;
}

int WriteByCall(BackingFile& file, std::span<const ApplyPiece> pieces, std::span<const std::byte> payload) {
  for (const ApplyPiece& piece : pieces) {
    if (const int error =
            WriteAll(file.fd->get(), payload.data() + piece.payload_offset, piece.length, piece.offset);
        error != 0) {
      return error;
    }
    file.size = std::max(file.size, piece.offset + piece.length);
  }
  return 0;
}

// Declared by the owner: nothing has to survive.
class VolatileDomain : public PersistenceDomain {
 public:
  Domain kind() const override { return Domain::kVolatile; }
  int Write(BackingFile& file, std::span<const ApplyPiece> pieces,
            std::span<const std::byte> payload) override {
    return WriteByCall(file, pieces, payload);
  }
  void TreeChanged() override {}
  void SizeChanged(BackingFile&) override {}
  int Persist(std::span<const std::shared_ptr<BackingFile>>, bool) override { return 0; }
  int PersistHeld(BackingFile&) override { return 0; }
  int PersistEverything() override { return 0; }
};

class FileDomain : public PersistenceDomain {
 public:
  explicit FileDomain(int directory) : directory_(directory) {}
  Domain kind() const override { return Domain::kFile; }

  int Write(BackingFile& file, std::span<const ApplyPiece> pieces,
            std::span<const std::byte> payload) override {
    const int error = WriteByCall(file, pieces, payload);
    Changed(file);
    return error;
  }

  void TreeChanged() override {
    volume_.Changed();  // before it is counted: whoever sees the count finds the change
    tree_changes_.fetch_add(1);
  }
  void SizeChanged(BackingFile& file) override { Changed(file); }

  int Persist(std::span<const std::shared_ptr<BackingFile>> files, bool tree) override {
    if ((tree && tree_durable_.load() < tree_changes_.load()) || files.size() >= kFilesForOneSyncfs) {
      return PersistEverything();
    }
    for (const std::shared_ptr<BackingFile>& file : files) {
      if (const int error = file->sync.Sync([&] { return SyncFile(*file); }); error != 0) {
        return error;
      }
    }
    return 0;
  }

  int PersistHeld(BackingFile& file) override { return ::fdatasync(file.fd->get()) == 0 ? 0 : errno; }

  int PersistEverything() override {
    const uint64_t tree_changes = tree_changes_.load();
    const int error = volume_.Sync([this] { return ::syncfs(directory_) == 0 ? 0 : errno; });
    if (error == 0) {
      RaiseTreeDurable(tree_changes);
    }
    return error;
  }

 protected:
  void Changed(BackingFile& file) {
    file.sync.Changed();
    volume_.Changed();
  }

 private:
  void RaiseTreeDurable(uint64_t changes) {
    uint64_t known = tree_durable_.load();
    while (known < changes && !tree_durable_.compare_exchange_weak(known, changes)) {
    }
  }

  static int SyncFile(BackingFile& file) {
    std::shared_ptr<const UniqueFd> fd;
    {
      const std::lock_guard lock(file.mutex);
      fd = file.fd;
      if (file.removed) {
        return 0;  // nobody can ask for its bytes again
      }
    }
    // A descriptor is closed only after its file was synced.
    return fd == nullptr || ::fdatasync(fd->get()) == 0 ? 0 : errno;
  }

  const int directory_;
  GroupSync volume_;  // of everything in the file system: bytes and tree
  std::atomic<uint64_t> tree_changes_ = 0;
  std::atomic<uint64_t> tree_durable_ = 0;
};

// Real persistent memory: non-temporal stores into a mapping of the file. Sizes and new blocks are the file
// system's: fdatasync.
class PmemDomain : public FileDomain {
 public:
  using FileDomain::FileDomain;
  Domain kind() const override { return Domain::kPmem; }

  int Write(BackingFile& file, std::span<const ApplyPiece> pieces,
            std::span<const std::byte> payload) override {
    uint64_t end = 0;
    for (const ApplyPiece& piece : pieces) {
      end = std::max(end, piece.offset + piece.length);
    }
    if (const int error = file.mapping.Cover(file.fd->get(), end); error != 0) {
      return error;
    }
    if (!file.mapping.is_pmem()) {  // not what the owner declared: safe, and slower
      return FileDomain::Write(file, pieces, payload);
    }
    if (end > file.size) {
      if (::ftruncate(file.fd->get(), static_cast<off_t>(end)) != 0) {
        return errno;
      }
      file.size = end;
      Changed(file);
    }
    for (const ApplyPiece& piece : pieces) {
      Store(file.mapping.base() + piece.offset, payload.data() + piece.payload_offset, piece.length);
    }
    ::pmem_drain();  // by the thread that stored; a barrier may come from another
    return 0;
  }

  void SizeChanged(BackingFile& file) override {
    file.mapping.Unmap();
    FileDomain::SizeChanged(file);
  }

 private:
  // Words that lie inside the range are stored whole (promise P2): libpmem gets only aligned words, because
  // its moves for odd lengths overlap and could store half a word first.
  static void Store(std::byte* to, const std::byte* from, size_t length) {
    const Words words(reinterpret_cast<uintptr_t>(to), length);
    CopyPartOfWord(to, from, words.head);
    if (words.whole != 0) {
      ::pmem_memcpy(to + words.head, from + words.head, words.whole,
                    PMEM_F_MEM_NONTEMPORAL | PMEM_F_MEM_NODRAIN);
    }
    const size_t done = words.head + words.whole;
    CopyPartOfWord(to + done, from + done, length - done);
  }

  static void CopyPartOfWord(std::byte* to, const std::byte* from, size_t length) {
    for (size_t i = 0; i < length; ++i) {
      static_cast<volatile std::byte*>(to)[i] = from[i];
    }
    if (length != 0) {
      ::pmem_flush(to, length);
    }
  }
};

}  // namespace

std::unique_ptr<PersistenceDomain> PersistenceDomain::Create(Domain domain, int directory) {
  switch (domain) {
    case Domain::kVolatile:
      return std::make_unique<VolatileDomain>();
    case Domain::kFile:
      return std::make_unique<FileDomain>(directory);
    case Domain::kPmem:
      return std::make_unique<PmemDomain>(directory);
  }
  return nullptr;
}

}  // namespace pmirror::server
