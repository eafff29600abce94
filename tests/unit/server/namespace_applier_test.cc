// SPDX-License-Identifier: BSD-3-Clause
// Namespace operations on a real backing tree: their effect, their repetition after a crash, and what
// contradicts the tree.
#include "server/namespace_applier.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <sys/sysmacros.h>

#include <filesystem>
#include <random>
#include <set>

#include "tests/unit/server/temp_directory.h"
#include "tests/unit/server/tree.h"

namespace pmirror::server {
namespace {

namespace fs = std::filesystem;

class NamespaceApplierTest : public testing::Test {
 protected:
  void SetUp() override { Reopen(); }

  // As after a restart of the daemon.
  void Reopen() {
    applier_.reset();
    auto index = BackingIndex::Build(directory_.path());
    ASSERT_TRUE(index.ok()) << index.status();
    index_ = *std::move(index);
    domain_ = PersistenceDomain::Create(Domain::kVolatile, index_->root());
    files_ = std::make_unique<FileTable>(*index_, *domain_);
    applier_ = std::make_unique<NamespaceApplier>(*index_, *files_, *domain_);
  }

  // 0 or the errno of the refusal.
  int Try(const NamespaceOp& op) {
    const Outcome outcome = applier_->Apply(op, ++number_).outcome;
    return outcome ? outcome->error_number : 0;
  }
  void Do(const NamespaceOp& op) { ASSERT_EQ(Try(op), 0) << Name(op.kind) << " " << op.name; }
  // The operation, and the operation once more as a crash right behind it would have it.
  void DoTwice(const NamespaceOp& op) {
    Do(op);
    const auto after = Snapshot(directory_.path());
    Reopen();
    Do(op);
    EXPECT_EQ(Snapshot(directory_.path()), after) << Name(op.kind);
  }
  struct stat Stat(const std::string& name) const {
    struct stat info {};
    EXPECT_EQ(::lstat((directory_ / name).c_str(), &info), 0) << name;
    return info;
  }
  bool Exists(const std::string& name) const { return fs::exists(fs::symlink_status(directory_ / name)); }

  TempDirectory directory_;
  std::unique_ptr<BackingIndex> index_;
  std::unique_ptr<PersistenceDomain> domain_;
  std::unique_ptr<FileTable> files_;
  std::unique_ptr<NamespaceApplier> applier_;
  uint64_t number_ = 0;
};

TEST_F(NamespaceApplierTest, CreateMakesEveryTypeWithExactModeOwnerAndId) {
  ::umask(077);
  struct Case {
    const char* name;
    uint32_t mode;
    const char* value;
  };
  uint64_t id = 10;
  for (const Case& one : {Case{"file", S_IFREG | 04751, ""}, Case{"dir", S_IFDIR | 03775, ""},
                          Case{"fifo", S_IFIFO | 0622, ""}, Case{"link", S_IFLNK | 0777, "some/where"},
                          Case{"sock", S_IFSOCK | 0600, ""}, Case{"null", S_IFCHR | 0666, ""}}) {
    NamespaceOp op = CreateOp(id, 1, one.name, one.mode, one.value);
    op.uid = 1234;
    op.gid = 4321;
    op.rdev = S_ISCHR(one.mode) ? makedev(1, 3) : 0;
    DoTwice(op);
    const struct stat info = Stat(one.name);
    EXPECT_EQ(info.st_mode, one.mode) << one.name;
    EXPECT_EQ(info.st_uid, 1234u);
    EXPECT_EQ(info.st_gid, 4321u);
    EXPECT_EQ(info.st_rdev, op.rdev);
    EXPECT_EQ(IdOf(directory_ / one.name), id);
    EXPECT_TRUE(index_->Contains(FileId{id}));
    ++id;
  }
  EXPECT_EQ(fs::read_symlink(directory_ / "link"), "some/where");
}

TEST_F(NamespaceApplierTest, ACreationThatACrashCutIsCompleted) {
  ASSERT_EQ(::mknod((directory_ / "half").c_str(), S_IFREG, 0), 0);  // no id, no mode yet
  Reopen();
  EXPECT_EQ(index_->without_id(), std::vector<std::string>{"half"});
  Do(CreateOp(10, 1, "half", S_IFREG | 0640));
  EXPECT_EQ(Stat("half").st_mode, S_IFREG | 0640u);
  EXPECT_EQ(IdOf(directory_ / "half"), 10u);
}

TEST_F(NamespaceApplierTest, ACreationOverAnotherObjectIsADifferenceAndChangesNothing) {
  Do(CreateOp(10, 1, "a"));
  std::ofstream(directory_ / "foreign") << "content";
  const auto before = Snapshot(directory_.path());
  EXPECT_EQ(Try(CreateOp(11, 1, "a")), ESTALE);
  EXPECT_EQ(Try(CreateOp(10, 1, "a", S_IFDIR | 0755)), ESTALE);
  EXPECT_EQ(Try(CreateOp(12, 1, "foreign")), ESTALE);
  EXPECT_EQ(Snapshot(directory_.path()), before);
}

TEST_F(NamespaceApplierTest, AnUnknownParentIsNoSuchFile) {
  EXPECT_EQ(Try(CreateOp(10, 99, "a")), ENOENT);
  EXPECT_EQ(Try(EntryOp(OpKind::kUnlink, 10, 99, "a")), ENOENT);
  EXPECT_EQ(Try(RenameOp(10, 1, "a", 99, "b")), ENOENT);
}

TEST_F(NamespaceApplierTest, LinkAndUnlinkCountNamesAndTheLastOneForgetsTheObject) {
  Do(CreateOp(10, 1, "a"));
  Do(CreateOp(11, 1, "d", S_IFDIR | 0755));
  DoTwice(EntryOp(OpKind::kLink, 10, 11, "b"));
  EXPECT_EQ(Stat("a").st_nlink, 2u);
  DoTwice(EntryOp(OpKind::kUnlink, 10, 1, "a"));
  EXPECT_TRUE(index_->Contains(FileId{10}));
  DoTwice(EntryOp(OpKind::kUnlink, 10, 11, "b"));
  EXPECT_FALSE(index_->Contains(FileId{10}));
}

TEST_F(NamespaceApplierTest, AnOrphanKeepsItsContentUntilItIsForgotten) {
  Do(CreateOp(10, 1, "a"));
  std::ofstream(directory_ / "a") << "bytes";
  DoTwice(EntryOp(OpKind::kUnlink, 10, 1, "a", kOpOrphaned));
  EXPECT_FALSE(Exists("a"));
  const std::string orphan = ".pmirror/orphans/" + OrphanName(FileId{10});
  EXPECT_EQ(ReadFile(directory_ / orphan), "bytes");
  Reopen();
  EXPECT_TRUE(index_->Contains(FileId{10}));
  DoTwice(ObjectOp(OpKind::kForgetOrphan, 10));
  EXPECT_FALSE(Exists(orphan));
  EXPECT_FALSE(index_->Contains(FileId{10}));
}

TEST_F(NamespaceApplierTest, ADirectoryIsParkedAmongTheOrphansWithItsContentAndGetsANameBack) {
  Do(CreateOp(10, 1, "d", S_IFDIR | 0755));
  Do(CreateOp(11, 10, "f"));
  DoTwice(EntryOp(OpKind::kUnlink, 10, 1, "d", kOpOrphaned));
  EXPECT_FALSE(Exists("d"));
  EXPECT_NE(Try(ObjectOp(OpKind::kForgetOrphan, 10)), 0) << "it is not empty";
  DoTwice(CreateOp(12, 10, "g"));
  Do(CreateOp(13, 1, "e", S_IFDIR | 0755));
  DoTwice(EntryOp(OpKind::kLink, 10, 13, "d"));
  EXPECT_EQ(IdOf(directory_ / "e/d/f"), 11u);
  EXPECT_EQ(IdOf(directory_ / "e/d/g"), 12u);
  EXPECT_TRUE(fs::is_empty(directory_ / ".pmirror/orphans"));
}

TEST_F(NamespaceApplierTest, AnOrphanGetsItsFirstNameByLink) {
  NamespaceOp op = ObjectOp(OpKind::kCreateOrphan, 10);
  op.mode = S_IFREG | 0600;
  DoTwice(op);
  DoTwice(EntryOp(OpKind::kLink, 10, 1, "named"));
  EXPECT_EQ(Stat("named").st_nlink, 1u);
  EXPECT_TRUE(fs::is_empty(directory_ / ".pmirror/orphans"));
  Do(ObjectOp(OpKind::kForgetOrphan, 10));  // its last handle is closed: it has a name now
  EXPECT_TRUE(Exists("named"));
  EXPECT_TRUE(index_->Contains(FileId{10}));
}

TEST_F(NamespaceApplierTest, RenameMovesReplacesAndKeepsTheReplacedOrphan) {
  Do(CreateOp(10, 1, "a"));
  Do(CreateOp(11, 1, "d", S_IFDIR | 0755));
  DoTwice(RenameOp(10, 1, "a", 11, "b"));
  EXPECT_EQ(IdOf(directory_ / "d/b"), 10u);
  Do(CreateOp(12, 1, "c"));
  DoTwice(RenameOp(12, 1, "c", 11, "b", 10));
  EXPECT_EQ(IdOf(directory_ / "d/b"), 12u);
  EXPECT_FALSE(index_->Contains(FileId{10}));
  Do(CreateOp(13, 1, "e"));
  std::ofstream(directory_ / "d/b") << "kept";
  DoTwice(RenameOp(13, 1, "e", 11, "b", 12, kOpOrphaned));
  EXPECT_EQ(ReadFile(directory_ / (".pmirror/orphans/" + OrphanName(FileId{12}))), "kept");
  EXPECT_EQ(IdOf(directory_ / "d/b"), 13u);
}

TEST_F(NamespaceApplierTest, ARenameThatACrashCutBehindTheOrphansLinkIsCompleted) {
  Do(CreateOp(10, 1, "a"));
  Do(CreateOp(11, 1, "b"));
  fs::create_hard_link(directory_ / "b", directory_ / (".pmirror/orphans/" + OrphanName(FileId{11})));
  Reopen();
  Do(RenameOp(10, 1, "a", 1, "b", 11, kOpOrphaned));
  EXPECT_EQ(IdOf(directory_ / "b"), 10u);
  EXPECT_TRUE(index_->Contains(FileId{11}));
}

TEST_F(NamespaceApplierTest, RenameOverAnEmptyDirectoryForgetsIt) {
  Do(CreateOp(10, 1, "a", S_IFDIR | 0755));
  Do(CreateOp(11, 1, "b", S_IFDIR | 0755));
  Do(CreateOp(12, 10, "inside"));
  DoTwice(RenameOp(10, 1, "a", 1, "b", 11));
  EXPECT_TRUE(Exists("b/inside"));
  EXPECT_FALSE(index_->Contains(FileId{11}));
}

TEST_F(NamespaceApplierTest, ExchangeSwapsOnceHoweverOftenItComes) {
  Do(CreateOp(10, 1, "a"));
  Do(CreateOp(11, 1, "b", S_IFDIR | 0755));
  DoTwice(RenameOp(10, 1, "a", 1, "b", 11, kOpExchange));
  EXPECT_EQ(IdOf(directory_ / "b"), 10u);
  EXPECT_EQ(IdOf(directory_ / "a"), 11u);
}

TEST_F(NamespaceApplierTest, RenameOfAnotherObjectOrOverAnUnexpectedOneIsADifference) {
  Do(CreateOp(10, 1, "a"));
  Do(CreateOp(11, 1, "b"));
  const auto before = Snapshot(directory_.path());
  EXPECT_EQ(Try(RenameOp(12, 1, "a", 1, "c")), ESTALE);
  EXPECT_EQ(Try(RenameOp(10, 1, "a", 1, "b")), ESTALE);
  EXPECT_EQ(Try(RenameOp(10, 1, "a", 1, "b", 99)), ESTALE);
  EXPECT_EQ(Try(RenameOp(10, 1, "missing", 1, "c")), ESTALE);
  EXPECT_EQ(Try(EntryOp(OpKind::kUnlink, 11, 1, "a")), ESTALE);
  EXPECT_EQ(Snapshot(directory_.path()), before);
}

TEST_F(NamespaceApplierTest, DirectoriesAreRemovedWhenEmptyOnly) {
  Do(CreateOp(10, 1, "d", S_IFDIR | 0755));
  Do(CreateOp(11, 10, "f"));
  EXPECT_EQ(Try(EntryOp(OpKind::kRemoveDirectory, 10, 1, "d")), ENOTEMPTY);
  Do(EntryOp(OpKind::kUnlink, 11, 10, "f"));
  DoTwice(EntryOp(OpKind::kRemoveDirectory, 10, 1, "d"));
  EXPECT_FALSE(index_->Contains(FileId{10}));
}

TEST_F(NamespaceApplierTest, AttributesReachFilesDirectoriesAndSymlinksThemselves) {
  Do(CreateOp(10, 1, "f", S_IFREG | 0600));
  Do(CreateOp(11, 1, "d", S_IFDIR | 0700));
  Do(CreateOp(12, 1, "l", S_IFLNK | 0777, "f"));
  for (const uint64_t id : {10, 11, 12}) {
    NamespaceOp owner = ObjectOp(OpKind::kSetOwner, id);
    owner.uid = 100;
    owner.gid = UINT32_MAX;
    owner.mode = 06711;
    DoTwice(owner);
    NamespaceOp times = ObjectOp(OpKind::kSetTimes, id);
    times.atime = {1000, 111};
    times.mtime = {2000, 222};
    DoTwice(times);
    times.atime = {0, UTIME_OMIT};
    times.mtime = {3000, 333};
    DoTwice(times);
    NamespaceOp attribute = EntryOp(OpKind::kSetXattr, id, 0, "trusted.color");
    attribute.value = std::string("re\0d", 4);
    DoTwice(attribute);
  }
  NamespaceOp mode = ObjectOp(OpKind::kSetMode, 10);
  mode.mode = S_IFREG | 02755;
  DoTwice(mode);
  EXPECT_EQ(Stat("f").st_mode, S_IFREG | 02755u);
  EXPECT_EQ(Stat("d").st_mode, S_IFDIR | 06711u);
  EXPECT_EQ(Stat("f").st_atim.tv_sec, 1000);  // of the others the test's own looking has changed it
  EXPECT_EQ(Stat("f").st_atim.tv_nsec, 111);
  for (const char* name : {"f", "d", "l"}) {
    const struct stat info = Stat(name);
    EXPECT_EQ(info.st_uid, 100u) << name;
    EXPECT_EQ(info.st_gid, 0u) << name;
    EXPECT_EQ(info.st_mtim.tv_sec, 3000) << name;
    EXPECT_EQ(info.st_mtim.tv_nsec, 333) << name;
    char value[8];
    EXPECT_EQ(::lgetxattr((directory_ / name).c_str(), "trusted.color", value, sizeof value), 4) << name;
  }
  DoTwice(EntryOp(OpKind::kRemoveXattr, 12, 0, "trusted.color"));
  EXPECT_EQ(::lgetxattr((directory_ / "l").c_str(), "trusted.color", nullptr, 0), -1);
}

TEST_F(NamespaceApplierTest, PmirrorsOwnAttributesAreNotForSale) {
  Do(CreateOp(10, 1, "f"));
  NamespaceOp op = EntryOp(OpKind::kSetXattr, 10, 0, "trusted.pmirror.id");
  op.value = "12345678";
  EXPECT_EQ(Try(op), EPERM);
  op.kind = OpKind::kRemoveXattr;
  EXPECT_EQ(Try(op), EPERM);
  EXPECT_EQ(IdOf(directory_ / "f"), 10u);
}

TEST_F(NamespaceApplierTest, SizeOperationsChangeTheFileAndEmptyItsOrderMap) {
  Do(CreateOp(10, 1, "f"));
  std::ofstream(directory_ / "f") << std::string(10000, 'x');
  const std::shared_ptr<BackingFile> file = files_->Get(FileId{10});
  file->order.Record(5, std::vector<WireRange>{{0, 100}});
  Do(TruncateOp(10, 9000));
  EXPECT_EQ(Stat("f").st_size, 9000);
  EXPECT_EQ(file->order.entries(), 0u);
  EXPECT_EQ(file->order.Judge(2 * (number_ - 1), number_), ApplyOrder::Verdict::kRecapture);
  Do(AllocateOp(10, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
  EXPECT_EQ(ReadFile(directory_ / "f"), std::string(4096, '\0') + std::string(9000 - 4096, 'x'));
  Do(AllocateOp(10, 0, 0, 20000));
  EXPECT_EQ(Stat("f").st_size, 20000);
  Do(AllocateOp(10, FALLOC_FL_KEEP_SIZE, 0, 40000));
  EXPECT_EQ(Stat("f").st_size, 20000);
}

TEST_F(NamespaceApplierTest, AllocateModesThatCannotBeRepeatedAreRefused) {
  Do(CreateOp(10, 1, "f"));
  EXPECT_EQ(Try(AllocateOp(10, FALLOC_FL_COLLAPSE_RANGE, 0, 4096)), EOPNOTSUPP);
  EXPECT_EQ(Try(AllocateOp(10, FALLOC_FL_INSERT_RANGE, 0, 4096)), EOPNOTSUPP);
  EXPECT_EQ(Try(AllocateOp(99, 0, 0, 4096)), ENOENT);
}

TEST_F(NamespaceApplierTest, ADeepTreeIsIndexedWithFewDescriptors) {
  uint64_t id = 1;
  for (int depth = 0; depth < 1500; ++depth) {
    Do(CreateOp(id + 1, id, "d", S_IFDIR | 0755));
    ++id;
  }
  Reopen();
  EXPECT_EQ(index_->size(), 1500u);
  for (; id > 1; --id) {  // remove_all cannot name so long a path
    Do(EntryOp(OpKind::kRemoveDirectory, id, id - 1, "d"));
  }
}

// Any sequence: each operation is applied, the daemon restarts, and the operation comes again.
TEST_F(NamespaceApplierTest, RandomSequencesAreTheSameWithEveryOperationRepeated) {
  std::mt19937 random(7);
  uint64_t next_id = 10;
  const auto pick_entry = [&]() -> fs::path {
    std::vector<fs::path> paths;
    for (const auto& entry : fs::recursive_directory_iterator(directory_.path())) {
      if (entry.path().string().find(".pmirror") == std::string::npos) {
        paths.push_back(entry.path());
      }
    }
    return paths.empty() ? fs::path() : paths[random() % paths.size()];
  };
  const auto id_of_parent = [&](const fs::path& path) {
    return path.parent_path() == directory_.path() ? 1 : IdOf(path.parent_path());
  };
  int done = 0;
  for (int step = 0; step < 400; ++step) {
    const fs::path path = pick_entry();
    const std::string fresh = "n" + std::to_string(random() % 30);
    const bool directory = !path.empty() && fs::is_directory(fs::symlink_status(path));
    const uint64_t parent = directory ? IdOf(path) : 1;
    NamespaceOp op = CreateOp(next_id++, parent, fresh, random() % 3 == 0 ? S_IFDIR | 0755 : S_IFREG | 0644);
    const int what = static_cast<int>(random() % 6);
    if (!path.empty() && what == 1) {
      op = EntryOp(directory ? OpKind::kRemoveDirectory : OpKind::kUnlink, IdOf(path), id_of_parent(path),
                   path.filename());
      op.flags = !directory && random() % 2 == 0 && fs::hard_link_count(path) == 1 ? kOpOrphaned : 0;
    } else if (!path.empty() && what == 2) {
      const fs::path other = pick_entry();
      op = RenameOp(IdOf(path), id_of_parent(path), path.filename(), id_of_parent(other), other.filename(),
                    IdOf(other), random() % 2 == 0 ? kOpExchange : 0);
    } else if (!path.empty() && what == 3) {
      op = RenameOp(IdOf(path), id_of_parent(path), path.filename(), 1, fresh);
    } else if (!path.empty() && what == 4 && !directory) {
      op = EntryOp(OpKind::kLink, IdOf(path), 1, fresh);
    }
    const auto before = Snapshot(directory_.path());
    if (Try(op) != 0) {
      ASSERT_EQ(Snapshot(directory_.path()), before)
          << "a refused operation changed something: " << Name(op.kind);
      continue;
    }
    ++done;
    const auto after = Snapshot(directory_.path());
    Reopen();
    // A rename onto itself, or of two names of one object, is nothing: POSIX.
    ASSERT_EQ(Try(op), 0) << Name(op.kind) << " " << op.name << " " << op.new_name;
    ASSERT_EQ(Snapshot(directory_.path()), after) << Name(op.kind);
    ASSERT_EQ(index_->without_id_count(), 0u);
  }
  EXPECT_GT(done, 100);
}

}  // namespace
}  // namespace pmirror::server
