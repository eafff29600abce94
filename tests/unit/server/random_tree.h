// SPDX-License-Identifier: BSD-3-Clause
// For tests: random trees on real backing directories, made and changed by the replica's own executors.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "recovery/inventory.h"
#include "recovery/tree_compare.h"
#include "recovery/tree_plan.h"
#include "server/data_applier.h"
#include "server/namespace_applier.h"
#include "server/undo_log.h"
#include "tests/unit/server/temp_directory.h"
#include "tests/unit/server/tree.h"

namespace pmirror::server {

using recovery::Inventory;
using recovery::InventoryDetail;

// What a crash in the middle of a creation leaves: the object without its id, or with that and no more.
enum class Half { kNothing, kBare, kIdentified };

class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}
  uint64_t Below(uint64_t count) { return random_() % count; }
  bool OneIn(uint64_t count) { return Below(count) == 0; }
  template <typename List>
  const typename List::value_type& Of(const List& list) {
    return list[Below(list.size())];
  }

 private:
  std::mt19937_64 random_;  // the same numbers with every library; distributions are not
};

// One side: a backing directory with the replica's own executors, and an undo log that is not active at first.
class Copy {
 public:
  explicit Copy(recovery::LogStorage& storage = recovery::LogStorage::Real()) : storage_(&storage) {
    Restart();
  }

  // As after a crash of the daemon.
  void Restart() {
    applier_.reset();
    data_.reset();
    undo_.reset();
    auto index = BackingIndex::Build(directory_.path());
    ASSERT_TRUE(index.ok()) << index.status();
    index_ = *std::move(index);
    domain_ = PersistenceDomain::Create(Domain::kVolatile, index_->root());
    files_ = std::make_unique<FileTable>(*index_, *domain_);
    undo_ = std::make_unique<UndoLog>(
        *index_,
        UndoLog::Options{.volume = "v0", .backing = directory_.path(), .reserve = 0, .storage = storage_});
    data_ = std::make_unique<DataApplier>(*files_, *domain_, undo_.get());
    applier_ = std::make_unique<NamespaceApplier>(*index_, *files_, *domain_, undo_.get());
  }
  void Restart(recovery::LogStorage& storage) {
    storage_ = &storage;
    Restart();
  }

  UndoLog& undo() { return *undo_; }
  const std::string& path() const { return directory_.path(); }

  // A frame. 0 or an errno.
  int Write(uint64_t id, uint64_t offset, const std::string& bytes) {
    FrameHeader header{};
    header.file = id;
    header.order = ++order_;
    const WireRange range{offset, bytes.size()};
    const Outcome outcome = data_->Apply(header, {&range, 1}, std::as_bytes(std::span(bytes)), 0).outcome;
    return !outcome ? 0 : outcome->error_number != 0 ? outcome->error_number : EPROTO;
  }

  // Of every regular file, by its id, also of orphans.
  std::map<uint64_t, std::string> Contents() const {
    std::map<uint64_t, std::string> contents;
    for (const recovery::TreeItem& item : Take(InventoryDetail::kFull)) {
      if (!S_ISREG(item.mode)) {
        continue;
      }
      if (const Result<UniqueFd> fd = index_->Open(item.id, O_RDONLY); fd.ok()) {
        std::string& bytes = contents[Raw(item.id)];
        bytes.resize(item.size);
        EXPECT_EQ(::pread(fd.value().get(), bytes.data(), bytes.size(), 0),
                  static_cast<ssize_t>(bytes.size()));
      }
    }
    return contents;
  }

  // Over the wire, as plans travel. 0 or an errno.
  int Apply(const NamespaceOp& op) {
    std::vector<std::byte> bytes;
    Encode(op, bytes);
    const Result<NamespaceOp> decoded = DecodeNamespaceOp(bytes);
    if (!decoded.ok()) {
      return decoded.error().code;
    }
    const Outcome outcome = applier_->Apply(decoded.value(), 0).outcome;
    return outcome ? outcome->error_number : 0;
  }

  void HalfCreate(const NamespaceOp& op, Half half) {
    const bool orphan = op.kind == OpKind::kCreateOrphan;
    const Result<UniqueFd> parent = index_->Open(orphan ? FileId::kRoot : op.parent, O_PATH);
    if (!parent.ok()) {
      return;
    }
    const int directory = orphan ? index_->orphans() : parent.value().get();
    const std::string name = orphan ? OrphanName(op.target) : op.name;
    if (S_ISDIR(op.mode)) {
      ::mkdirat(directory, name.c_str(), 0);
    } else if (S_ISLNK(op.mode)) {
      ::symlinkat(op.value.c_str(), directory, name.c_str());
    } else {
      ::mknodat(directory, name.c_str(), op.mode & S_IFMT, op.rdev);
    }
    if (half == Half::kIdentified) {
      const uint64_t id = Raw(op.target);
      ::lsetxattr((DescriptorPath(directory) + "/" + name).c_str(), recovery::kIdXattr, &id, sizeof id, 0);
    }
  }

  // Another name among the orphans, as a crash in the middle of a replacing rename leaves it.
  void HalfReplace(uint64_t id) {
    const Result<UniqueFd> object = index_->Open(FileId{id}, O_PATH | O_NOFOLLOW);
    if (object.ok()) {
      ::linkat(object.value().get(), "", index_->orphans(), OrphanName(FileId{id}).c_str(), AT_EMPTY_PATH);
    }
  }

  Inventory Take(InventoryDetail detail) const {
    absl::StatusOr<Inventory> inventory = recovery::TakeInventory(index_->root(), detail);
    EXPECT_TRUE(inventory.ok()) << inventory.status();
    return inventory.ok() ? *std::move(inventory) : Inventory{};
  }

  size_t indexed() const { return index_->size(); }

 private:
  TempDirectory directory_;
  recovery::LogStorage* storage_;
  uint64_t order_ = 0;
  std::unique_ptr<BackingIndex> index_;
  std::unique_ptr<PersistenceDomain> domain_;
  std::unique_ptr<FileTable> files_;
  std::unique_ptr<UndoLog> undo_;
  std::unique_ptr<DataApplier> data_;
  std::unique_ptr<NamespaceApplier> applier_;
};

inline std::string Acl(Dice& dice) {
  std::string value("\2\0\0\0",
                    4);  // version 2, then (tag, permissions, id) of owner, user 5, group, mask, others
  for (const uint16_t tag : {0x01, 0x02, 0x04, 0x10, 0x20}) {
    const uint16_t permissions = static_cast<uint16_t>(tag == 0x02 ? 4 + dice.Below(2) : 5);
    const uint32_t id = tag == 0x02 ? 5 : UINT32_MAX;
    value.append(reinterpret_cast<const char*>(&tag), 2);
    value.append(reinterpret_cast<const char*>(&permissions), 2);
    value.append(reinterpret_cast<const char*>(&id), 4);
  }
  return value;
}

// Makes a random tree. Two of them share ids, names and, mostly, types.
class Grower {
 public:
  enum class Role { kOriginal, kCopy };
  Grower(uint64_t seed, Role role, Copy& copy)
      : dice_(seed * 2 + (role == Role::kCopy ? 1 : 0)), role_(role), copy_(copy) {}

  void Grow() {
    for (uint64_t steps = dice_.Below(30); steps > 0; --steps) {
      Step();
    }
    for (const uint64_t id : dressed_) {
      Dress(id);
    }
  }

 private:
  static constexpr uint64_t kFirstId = 10;
  static constexpr uint64_t kIds = 14;

  void Step() {
    // One statement a throw: compilers are free in the order of arguments.
    const uint64_t id = kFirstId + dice_.Below(kIds);
    const uint64_t parent = dice_.Of(directories_);
    const std::string name = Name();
    NamespaceOp op = CreateOp(id, parent, name, Mode(id));
    Choose(op);
    if (role_ == Role::kCopy && dice_.OneIn(25)) {
      copy_.HalfCreate(op, Half::kBare);
    } else if (IsUsed(id)) {
      Move(id, op);
    } else if (S_ISREG(op.mode) && dice_.OneIn(6)) {
      op.kind = OpKind::kCreateOrphan;
      op.name.clear();
      Make(op);
    } else {
      Make(op);
    }
  }

  // Another name, another place, or none.
  void Move(uint64_t id, const NamespaceOp& at) {
    const auto last = std::find_if(made_.begin(), made_.end(), [&](const NamespaceOp& op) {
      return Raw(op.target) == id && op.kind == OpKind::kCreate;
    });
    if (!S_ISDIR(at.mode) && dice_.OneIn(2)) {
      copy_.Apply(EntryOp(OpKind::kLink, id, Raw(at.parent), at.name));
    } else if (role_ == Role::kCopy && last != made_.end() && dice_.OneIn(3)) {
      copy_.Apply(EntryOp(OpKind::kUnlink, id, Raw(last->parent), last->name, kOpOrphaned));
    } else if (role_ == Role::kCopy && dice_.OneIn(2)) {
      copy_.HalfReplace(id);  // refused for a directory
    }
  }

  void Make(const NamespaceOp& op) {
    if (copy_.Apply(op) != 0) {
      return;  // the name is taken
    }
    made_.push_back(op);
    dressed_.push_back(Raw(op.target));
    if (S_ISDIR(op.mode)) {
      directories_.push_back(Raw(op.target));
    }
  }

  bool IsUsed(uint64_t id) const { return std::count(dressed_.begin(), dressed_.end(), id) != 0; }

  std::string Name() { return std::string(1, static_cast<char>('a' + dice_.Below(4))); }

  uint32_t Mode(uint64_t id) {
    static constexpr uint32_t kTypes[] = {S_IFDIR, S_IFREG, S_IFDIR, S_IFREG, S_IFLNK, S_IFDIR,
                                          S_IFREG, S_IFCHR, S_IFDIR, S_IFREG, S_IFIFO};
    return kTypes[(dice_.OneIn(8) ? dice_.Below(11) : id) % 11];
  }

  // What else a creation says.
  void Choose(NamespaceOp& op) {
    const uint32_t permissions[] = {0600, 0755, 04711, 02770, 0};
    op.mode |= S_ISLNK(op.mode) ? 0777 : permissions[dice_.Below(5)];
    op.uid = static_cast<uint32_t>(dice_.Below(3));
    op.gid = static_cast<uint32_t>(dice_.Below(2));
    op.rdev = S_ISCHR(op.mode) ? makedev(1, 3 + static_cast<unsigned>(dice_.Below(3))) : 0;
    op.value = S_ISLNK(op.mode) ? Name() : "";
  }

  // Attributes, after all creations: a default ACL would be inherited.
  void Dress(uint64_t id) {
    for (uint64_t count = dice_.Below(4); count > 0; --count) {
      NamespaceOp op = EntryOp(OpKind::kSetXattr, id, 0, "trusted." + Name());
      op.value = Name();
      if (dice_.OneIn(3)) {
        op.name = dice_.OneIn(2) ? "system.posix_acl_default" : "system.posix_acl_access";
        op.value = Acl(dice_);
      } else if (dice_.OneIn(3)) {
        op.name = "security.capability";
        op.value = std::string("\0\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20);
      }
      copy_.Apply(op);  // refused where the type has no such attribute
    }
    if (dice_.OneIn(2)) {
      copy_.Apply(TruncateOp(id, dice_.Below(3) * 5000));
    }
    NamespaceOp times = ObjectOp(OpKind::kSetTimes, id);
    times.mtime = {static_cast<int64_t>(1000 + dice_.Below(2)), 5};
    copy_.Apply(times);
  }

  Dice dice_;
  const Role role_;
  Copy& copy_;
  std::vector<uint64_t> directories_{1};
  std::vector<uint64_t> dressed_;
  std::vector<NamespaceOp> made_;
};

// The original's inventory, its orphans as a primary has them.
inline Inventory TakeOriginal(const Copy& copy) {
  Inventory inventory = copy.Take(InventoryDetail::kFull);
  for (recovery::TreeItem& item : inventory) {
    item.path = item.orphan ? "" : item.path;
  }
  return inventory;
}

// What CompareTrees does not look at: orphans and times.
inline std::vector<std::string> Rest(const Inventory& inventory) {
  std::vector<std::string> lines;
  for (const recovery::TreeItem& item : inventory) {
    std::ostringstream line;
    line << (item.orphan ? "orphan" : item.path) << ' ' << Raw(item.id) << ' ' << item.mtime.seconds << '.'
         << item.mtime.nanoseconds;
    if (item.orphan) {
      line << ' ' << item.mode << ' ' << item.uid << ':' << item.gid << ' ' << item.size << ' '
           << item.xattr_crc;
    }
    lines.push_back(line.str());
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

inline std::string Describe(const std::vector<recovery::Difference>& differences) {
  std::string text;
  for (const recovery::Difference& difference : differences) {
    text += difference.path + " " + recovery::Name(difference.what) + "\n";
  }
  return text;
}

inline void ExpectEqual(const Inventory& original, const Copy& copy) {
  const Inventory result = copy.Take(InventoryDetail::kFull);
  EXPECT_EQ(Describe(recovery::CompareTrees(original, result)), "");
  EXPECT_EQ(Rest(result), Rest(original));
  EXPECT_THAT(recovery::PlanTree(original, result).operations, testing::IsEmpty());
}

}  // namespace pmirror::server
