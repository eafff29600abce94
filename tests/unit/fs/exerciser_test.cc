// SPDX-License-Identifier: BSD-3-Clause
// Random work on a mount: one file against a copy in memory, and many threads on one small tree against a
// replay of what was recorded.
#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <random>
#include <thread>

#include "tests/unit/fs/mounted_volume.h"
#include "tests/unit/fs/served_volume.h"

namespace pmirror::fs {
namespace {

constexpr size_t kMaxFile = 300'000;

// One file through several handles of different kinds, and what it should hold.
class FileExerciser {
 public:
  FileExerciser(const std::string& path, unsigned seed) : random_(seed) {
    for (const int flags : {O_RDWR | O_CREAT, O_RDWR, O_RDWR | O_SYNC, O_RDWR | O_APPEND}) {
      handles_.emplace_back(::open(path.c_str(), flags | O_CLOEXEC, 0644));
    }
  }

  // Empty when everything was as expected, else what was not.
  std::string Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      const int kind = static_cast<int>(random_() % 9);
      const bool good = Step(kind);
      if (!good || (i % 16 == 15 && !Compare())) {
        return "step " + std::to_string(i) + " kind " + std::to_string(kind) + " " + std::strerror(errno);
      }
    }
    return Compare() ? "" : "differs at the end";
  }

 private:
  int Plain() { return handles_[random_() % 3].get(); }
  int Appender() { return handles_[3].get(); }
  size_t Offset() { return random_() % kMaxFile; }
  size_t Length() { return 1 + random_() % (random_() % 4 == 0 ? 70'000 : 500); }
  std::string Bytes(size_t n) {
    std::string bytes(n, '\0');
    for (char& c : bytes) {
      c = static_cast<char>(random_());
    }
    return bytes;
  }
  void Put(size_t at, const std::string& bytes) {
    if (wanted_.size() < at + bytes.size()) {
      wanted_.resize(at + bytes.size(), '\0');
    }
    wanted_.replace(at, bytes.size(), bytes);
  }

  bool Step(int kind) {
    switch (kind) {
      case 0:
        return Write();
      case 1:
        return Append();
      case 2:
        return Read();
      case 3:
        return Truncate();
      case 4:
        return Store();
      case 5:
        return Punch();
      case 6:
        return Allocate();
      case 7:
        return Copy();
      default:
        return ::fsync(Plain()) == 0;
    }
  }

  bool Write() {
    const size_t at = Offset();
    const std::string bytes = Bytes(Length());
    Put(at, bytes);
    return ::pwrite(Plain(), bytes.data(), bytes.size(), static_cast<off_t>(at)) ==
           static_cast<ssize_t>(bytes.size());
  }
  bool Append() {
    if (wanted_.size() > kMaxFile) {
      return true;
    }
    const std::string bytes = Bytes(Length());
    Put(wanted_.size(), bytes);
    return ::write(Appender(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
  }
  bool Read() {
    const size_t at = Offset();
    std::string bytes(Length(), '\0');
    const ssize_t n = ::pread(Plain(), bytes.data(), bytes.size(), static_cast<off_t>(at));
    const std::string expected = at < wanted_.size() ? wanted_.substr(at, bytes.size()) : "";
    return n == static_cast<ssize_t>(expected.size()) && bytes.compare(0, expected.size(), expected) == 0;
  }
  bool Truncate() {
    wanted_.resize(Offset(), '\0');
    return ::ftruncate(Plain(), static_cast<off_t>(wanted_.size())) == 0;
  }
  // Through a shared mapping, with or without msync.
  bool Store() {
    if (wanted_.empty()) {
      return true;
    }
    const size_t at = random_() % wanted_.size();
    const std::string bytes = Bytes(std::min(Length(), wanted_.size() - at));
    const size_t page = at / 4096 * 4096;
    const size_t length = at + bytes.size() - page;
    void* map =
        ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, Plain(), static_cast<off_t>(page));
    if (map == MAP_FAILED) {
      return false;
    }
    const bool same =
        std::memcmp(static_cast<char*>(map) + (at - page), wanted_.data() + at, bytes.size()) == 0;
    std::memcpy(static_cast<char*>(map) + (at - page), bytes.data(), bytes.size());
    Put(at, bytes);
    const bool synced = random_() % 2 == 0 || ::msync(map, length, MS_SYNC) == 0;
    return ::munmap(map, length) == 0 && same && synced;
  }
  bool Punch() {
    const size_t at = Offset();
    const size_t length = Length();
    if (at < wanted_.size()) {
      const size_t inside = std::min(length, wanted_.size() - at);
      wanted_.replace(at, inside, std::string(inside, '\0'));
    }
    return ::fallocate(Plain(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at),
                       static_cast<off_t>(length)) == 0;
  }
  bool Allocate() {
    const size_t at = Offset();
    const size_t length = Length();
    const bool keep = random_() % 2 == 0;
    if (!keep && wanted_.size() < at + length) {
      wanted_.resize(at + length, '\0');
    }
    return ::fallocate(Plain(), keep ? FALLOC_FL_KEEP_SIZE : 0, static_cast<off_t>(at),
                       static_cast<off_t>(length)) == 0;
  }
  bool Copy() {
    const size_t length = Length();
    if (wanted_.size() < length) {
      return true;
    }
    const size_t from = random_() % (wanted_.size() - length + 1);
    const size_t to = from + length + random_() % 1000;
    const std::string bytes = wanted_.substr(from, length);
    auto in = static_cast<loff_t>(from);
    auto out = static_cast<loff_t>(to);
    Put(to, bytes);
    size_t left = length;
    while (left > 0) {
      const ssize_t n = ::copy_file_range(Plain(), &in, Plain(), &out, left, 0);
      if (n <= 0) {
        return false;
      }
      left -= static_cast<size_t>(n);
    }
    return true;
  }

  bool Compare() {
    struct stat info {};
    std::string bytes(wanted_.size() + 1, '\0');
    return ::fstat(Plain(), &info) == 0 && info.st_size == static_cast<off_t>(wanted_.size()) &&
           ::pread(Plain(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(wanted_.size()) &&
           bytes.compare(0, wanted_.size(), wanted_) == 0;
  }

  std::mt19937 random_;
  std::vector<UniqueFd> handles_;
  std::string wanted_;
};

// Maps files of the mount, so another process must serve it.
using FileExerciserTest = ServedVolume;

TEST_F(FileExerciserTest, RandomWorkOnOneFileMatchesItsCopyInMemory) {
  for (unsigned seed = 1; seed <= 6; ++seed) {
    EXPECT_EQ(FileExerciser(At("f" + std::to_string(seed)), seed).Run(700), "") << "seed " << seed;
  }
}

using ExerciserTest = MountedVolume;

TEST_F(ExerciserTest, RandomWorkInDirectModeMatchesToo) {
  ::close(::open(At("f").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  struct stat info {};
  ASSERT_EQ(::stat(At("f").c_str(), &info), 0);
  const FileSystem::DirectAnswer answer =
      fs_->AcquireDirect(FileId{info.st_ino}, true, Deadline::After(std::chrono::seconds(20)));
  ASSERT_EQ(answer.error, 0);
  const int fd = ::open(At("f").c_str(), O_RDWR | O_TRUNC | O_CLOEXEC);
  std::mt19937 random(5);
  std::string wanted(100'000, '\0');
  ASSERT_EQ(::ftruncate(fd, static_cast<off_t>(wanted.size())), 0);
  for (int i = 0; i < 500; ++i) {
    const size_t at = random() % (wanted.size() - 100);
    wanted[at] = static_cast<char>(random());
    ASSERT_EQ(::pwrite(fd, &wanted[at], 1, static_cast<off_t>(at)), 1);
  }
  std::string got(wanted.size(), 'x');
  ASSERT_EQ(::pread(fd, got.data(), got.size(), 0), static_cast<ssize_t>(got.size()));
  EXPECT_TRUE(got == wanted);
  ::close(fd);
}

TEST_F(ExerciserTest, ConcurrentAppendersLoseNothingAndNeverShareBytes) {
  constexpr int kThreads = 6;
  constexpr int kRecords = 200;
  constexpr size_t kRecord = 37;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      UniqueFd fd(::open(At("log").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
      const std::string record(kRecord, static_cast<char>('a' + t));
      for (int i = 0; i < kRecords; ++i) {
        EXPECT_EQ(::write(fd.get(), record.data(), record.size()), static_cast<ssize_t>(kRecord));
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  UniqueFd fd(::open(Behind("log").c_str(), O_RDONLY | O_CLOEXEC));
  std::string text(kThreads * kRecords * kRecord + 1, '\0');
  ASSERT_EQ(::read(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size() - 1));
  std::map<char, int> records;
  for (size_t at = 0; at + 1 < text.size(); at += kRecord) {
    ASSERT_EQ(text.compare(at, kRecord, std::string(kRecord, text[at])), 0) << "torn record at " << at;
    ++records[text[at]];
  }
  EXPECT_EQ(records.size(), static_cast<size_t>(kThreads));
  // The extents that replication was told of cover the file, each byte once.
  std::map<uint64_t, uint64_t> told;
  for (const RecordedWrite& write : replicator_.TakeWrites()) {
    told[write.extent.offset] += write.extent.length;
  }
  uint64_t end = 0;
  for (const auto& [offset, length] : told) {
    ASSERT_EQ(offset, end);
    end += length;
  }
  EXPECT_EQ(end, text.size() - 1);
}

// --- many threads on one tree ---

using Place = std::pair<uint64_t, std::string>;  // directory's id, name

// What a replica's tree would be: the recorded operations in their order, nothing decided.
class Replay {
 public:
  void Apply(const NamespaceOp& op) {
    const Place place{Raw(op.parent), op.name};
    const Place other{Raw(op.new_parent), op.new_name};
    switch (op.kind) {
      case OpKind::kCreate:
      case OpKind::kLink:
        Check(entries_.emplace(place, Raw(op.target)).second, op);
        break;
      case OpKind::kUnlink:
      case OpKind::kRemoveDirectory:
        Check(At(place) == Raw(op.target) && entries_.erase(place) == 1, op);
        break;
      case OpKind::kRename:
        Check(At(place) == Raw(op.target) && At(other) == Raw(op.replaced), op);
        if ((op.flags & kOpExchange) != 0) {
          std::swap(entries_[place], entries_[other]);
        } else {
          entries_.erase(place);
          entries_[other] = Raw(op.target);
        }
        break;
      default:
        break;
    }
  }
  const std::map<Place, uint64_t>& entries() const { return entries_; }

 private:
  uint64_t At(const Place& place) const {
    const auto found = entries_.find(place);
    return found == entries_.end() ? 0 : found->second;
  }
  static void Check(bool good, const NamespaceOp& op) {
    EXPECT_TRUE(good) << "does not follow: kind " << static_cast<int>(op.kind) << " of " << op.name << " "
                      << op.new_name;
  }
  std::map<Place, uint64_t> entries_;
};

void Walk(const BackingRoot& root, const std::string& path, std::map<Place, uint64_t>& entries) {
  UniqueFd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const FileId id = root.GetId(directory.get()).value();
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    const std::string name = entry.path().filename();
    entries[{Raw(id), name}] = Raw(root.GetEntryId(directory.get(), name.c_str()).value());
    if (entry.is_directory() && !entry.is_symlink()) {
      Walk(root, entry.path(), entries);
    }
  }
}

TEST_F(ExerciserTest, RecordedOperationsOfManyThreadsReplayToTheSameTree) {
  constexpr int kThreads = 8;
  constexpr int kSteps = 400;
  const std::vector<std::string> names = {"a",    "b",    "c",    "d1",   "d2",     "d1/a",
                                          "d1/b", "d1/x", "d2/a", "d2/x", "d1/x/y", "d2/x/y"};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      const auto pick = [&] { return At(names[random() % names.size()]); };
      for (int i = 0; i < kSteps; ++i) {
        const std::string path = pick();
        switch (random() % 9) {
          case 0:
          case 1:
            ::mkdir(path.c_str(), 0755);
            break;
          case 2:
            ::close(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
            break;
          case 3:
            ::unlink(path.c_str());
            break;
          case 4:
            ::rmdir(path.c_str());
            break;
          case 5:
            ::link(path.c_str(), pick().c_str());
            break;
          case 6:
            ::rename(path.c_str(), pick().c_str());
            break;
          case 7:
            ::renameat2(AT_FDCWD, path.c_str(), AT_FDCWD, pick().c_str(),
                        random() % 2 == 0 ? RENAME_EXCHANGE : RENAME_NOREPLACE);
            break;
          default: {
            UniqueFd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
            char buffer[4096];
            while (directory.valid() && ::getdents64(directory.get(), buffer, sizeof(buffer)) > 0) {
            }
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  Replay replay;
  for (const NamespaceOp& op : replicator_.TakeOps()) {
    replay.Apply(op);
  }
  std::map<Place, uint64_t> actual;
  Walk(*root_, backing(), actual);
  EXPECT_EQ(replay.entries(), actual);
}

TEST_F(ExerciserTest, SmallPinLimitChangesNothing) {
  if (!root_->has_handles()) {
    GTEST_SKIP() << "this file system has no handles";
  }
  ASSERT_TRUE(session_->Unmount(Deadline::After(std::chrono::seconds(10))));
  pin_limit_ = 2;
  Remount();
  for (int i = 0; i < 50; ++i) {
    const std::string directory = At("d" + std::to_string(i));
    ASSERT_EQ(::mkdir(directory.c_str(), 0755), 0);
    UniqueFd fd(::open((directory + "/f").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    ASSERT_EQ(::write(fd.get(), "text", 4), 4);
    ASSERT_EQ(::unlink((directory + "/f").c_str()), 0);
    ASSERT_EQ(::fchmod(fd.get(), 0600), 0) << std::strerror(errno);
    char text[8];
    ASSERT_EQ(::pread(fd.get(), text, sizeof(text), 0), 4);
    ASSERT_EQ(::rename(directory.c_str(), At("moved" + std::to_string(i)).c_str()), 0);
  }
  int descriptors = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++descriptors;
  }
  EXPECT_LT(descriptors, 50);
}

}  // namespace
}  // namespace pmirror::fs
