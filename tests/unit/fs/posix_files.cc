// SPDX-License-Identifier: BSD-3-Clause
// Cases of the POSIX exerciser: open flags, data, sizes, mappings, locks.
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "tests/unit/fs/posix_tree.h"

namespace pmirror::fs {
namespace {

void OpenFlags(Tree& t) {
  int fd = t.Open("f", O_RDONLY);
  fd = t.Open("f", O_RDONLY | O_CREAT | O_EXCL, 0400);
  t.Log("write to a read-only handle", ::write(fd, "x", 1));
  t.Open("f", O_RDWR | O_CREAT | O_EXCL);
  fd = t.Open("readonly-mode", O_RDWR | O_CREAT, 0444);
  t.Log("write", ::write(fd, "made", 4));
  fd = t.Open("w", O_WRONLY | O_CREAT, 0600);
  char text[16] = "";
  t.Log("read from a write-only handle", ::read(fd, text, sizeof(text)));
  t.Log("write", ::write(fd, "0123456789", 10));
  fd = t.Open("w", O_RDWR | O_TRUNC);
  t.Stat("w");
  t.Log("read at the end", ::read(fd, text, sizeof(text)));
  t.Open("w", O_RDONLY | O_TRUNC);
  t.Open("none", O_RDWR | O_TRUNC);
  t.Open("t", O_RDWR | O_CREAT | O_TRUNC, 0640);
  t.Open("", O_RDONLY | O_DIRECTORY);
  t.Open("noatime", O_RDWR | O_CREAT | O_NOATIME);
  const int path = t.Open("w", O_PATH);
  t.Log("read through O_PATH", ::read(path, text, 1));
  t.Log("flags", ::fcntl(fd, F_GETFL) & (O_ACCMODE | O_APPEND));
}

void TruncateOnOpenOfAFullFile(Tree& t) {
  const int first = t.Open("f", O_RDWR | O_CREAT);
  t.Log("write", ::write(first, "0123456789", 10));
  const int second = t.Open("f", O_WRONLY | O_TRUNC);
  t.Stat("f");
  t.Log("write past the end", ::pwrite(first, "z", 1, 5));
  t.Content("f");
  t.Log("write", ::write(second, "ab", 2));
  t.Content("f");
  t.Times("truncating an empty file", "f", [&] {
    ::ftruncate(first, 0);
    ::close(::open((t / "f").c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC));
  });
}

void Append(Tree& t) {
  const int a = t.Open("f", O_RDWR | O_CREAT | O_APPEND);
  const int b = t.Open("f", O_WRONLY | O_APPEND);
  t.Log("a", ::write(a, "aaa", 3));
  t.Log("b", ::write(b, "bb", 2));
  t.Log("a position", ::lseek(a, 0, SEEK_CUR));
  t.Log("a pwrite appends", ::pwrite(a, "cc", 2, 0));
  t.Content("f");
  t.Log("seek and write", ::lseek(a, 0, SEEK_SET));
  t.Log("a", ::write(a, "dd", 2));
  t.Content("f");
  const int plain = t.Open("f", O_RDWR);
  t.Log("becomes an appender", ::fcntl(plain, F_SETFL, O_APPEND));
  t.Log("write", ::write(plain, "ee", 2));
  t.Log("stops to be one", ::fcntl(plain, F_SETFL, 0));
  t.Log("write", ::pwrite(plain, "Z", 1, 0));
  t.Content("f");
  iovec parts[2] = {{const_cast<char*>("12"), 2}, {const_cast<char*>("345"), 3}};
  t.Log("writev", ::writev(b, parts, 2));
  t.Log("append after shrinking", ::truncate((t / "f").c_str(), 1));
  t.Log("b", ::write(b, "end", 3));
  t.Content("f");
}

void Sizes(Tree& t) {
  const int fd = t.Open("f", O_RDWR | O_CREAT);
  t.Log("grow", ::ftruncate(fd, 10000));
  t.Log("write inside", ::pwrite(fd, "x", 1, 5000));
  t.Log("shrink", ::ftruncate(fd, 5001));
  t.Log("grow", ::ftruncate(fd, 20000));
  t.Content("f");
  t.Log("by path", ::truncate((t / "f").c_str(), 123));
  t.Stat("f");
  t.Log("negative", ::ftruncate(fd, -1));
  t.Log("of a directory", ::truncate((t / "").c_str(), 0));
  t.Log("of nothing", ::truncate((t / "no").c_str(), 0));
  const int reader = t.Open("f", O_RDONLY);
  t.Log("through a reader", ::ftruncate(reader, 0));
  t.Times("ftruncate to the same size", "f", [&] { ::ftruncate(fd, 123); });
  t.Times("truncate to the same size", "f", [&] { ::truncate((t / "f").c_str(), 123); });
  t.Times("ftruncate", "f", [&] { ::ftruncate(fd, 12); });
  t.Log("far write", ::pwrite(fd, "y", 1, (1LL << 40)));
  t.Stat("f");
  t.Log("far read", ::pread(fd, &t, 0, 1LL << 41));
  t.Log("too far", ::pwrite(fd, "y", 1, INT64_MAX));
  t.Log("shrink", ::ftruncate(fd, 0));
  t.Log("zero bytes", ::pwrite(fd, "", 0, 100));
  t.Stat("f");
}

void SizeLimit(Tree& t) {
  const int fd = t.Open("f", O_RDWR | O_CREAT);
  t.As(0, 0, {}, [&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{.rlim_cur = 4096, .rlim_max = 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string text(6000, 'x');
    t.Log("cut write", ::pwrite(fd, text.data(), text.size(), 0));
    t.Log("write beyond", ::pwrite(fd, "x", 1, 4096));
    t.Log("truncate beyond", ::ftruncate(fd, 5000));
    t.Log("allocate beyond", ::fallocate(fd, 0, 0, 5000));
  });
  t.Stat("f");
}

void WriteTimes(Tree& t) {
  const int fd = t.Open("f", O_RDWR | O_CREAT);
  t.Times("write", "f", [&] { ::write(fd, "abc", 3); });
  t.Times("empty write", "f", [&] { ::write(fd, "", 0); });
  t.Times("fsync", "f", [&] { ::fsync(fd); });
  t.Times("chmod", "f", [&] { ::fchmod(fd, 0600); });
  t.Times("chown to the same", "f", [&] { ::fchown(fd, 0, 0); });

  t.Times("allocate", "f", [&] { ::fallocate(fd, 0, 0, 10); });
  t.Times("punch", "f", [&] { ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2); });
  t.Times("mapped store", "f", [&] {
    void* at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    static_cast<char*>(at)[1] = 'm';
    ::msync(at, 4096, MS_SYNC);
    ::munmap(at, 4096);
  });
  t.Content("f");
}

void Allocate(Tree& t) {
  const int fd = t.Open("f", O_RDWR | O_CREAT);
  t.Log("allocate", ::fallocate(fd, 0, 0, 8192));
  t.Stat("f");
  t.Log("keep size", ::fallocate(fd, FALLOC_FL_KEEP_SIZE, 8192, 8192));
  t.Stat("f");
  t.Log("posix_fallocate", ::posix_fallocate(fd, 10000, 100));
  t.Stat("f");
  const std::string text(10000, 'q');
  t.Log("fill", ::pwrite(fd, text.data(), text.size(), 0));
  t.Log("punch", ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1000, 5000));
  t.Content("f");
  t.Log("punch without keep", ::fallocate(fd, FALLOC_FL_PUNCH_HOLE, 1000, 5000));
  t.Log("punch beyond the end", ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 9000, 50000));
  t.Content("f");
  t.Log("negative", ::fallocate(fd, 0, -1, 10));
  t.Log("zero", ::fallocate(fd, 0, 0, 0));
  const int reader = t.Open("f", O_RDONLY);
  t.Log("through a reader", ::fallocate(reader, 0, 0, 10));
  const int directory = t.Open("", O_RDONLY | O_DIRECTORY);
  t.Log("of a directory", ::fallocate(directory, 0, 0, 10));
}

void HolesAndSeek(Tree& t) {
  const int fd = t.Open("f", O_RDWR | O_CREAT);
  t.Log("data", ::pwrite(fd, "data", 4, 1 << 20));
  t.Log("size", ::ftruncate(fd, 3 << 20));
  t.Log("first data", ::lseek(fd, 0, SEEK_DATA));
  t.Log("first hole", ::lseek(fd, 0, SEEK_HOLE));
  t.Log("hole after data", ::lseek(fd, 1 << 20, SEEK_HOLE));
  t.Log("no more data", ::lseek(fd, 2 << 20, SEEK_DATA));
  t.Log("beyond the end", ::lseek(fd, 4 << 20, SEEK_DATA));
  t.Log("end", ::lseek(fd, 0, SEEK_END));
  t.Log("before the start", ::lseek(fd, -1, SEEK_SET));
  t.Log("bad whence", ::lseek(fd, 0, 77));
  struct stat info {};
  ::fstat(fd, &info);
  t.Log("blocks", info.st_blocks);
}

void CopyRange(Tree& t) {
  const int from = t.Open("from", O_RDWR | O_CREAT);
  const int to = t.Open("to", O_RDWR | O_CREAT);
  std::string text(100000, 'a');
  for (size_t i = 0; i < text.size(); ++i) {
    text[i] = static_cast<char>('a' + i % 26);
  }
  t.Log("fill", ::write(from, text.data(), text.size()));
  loff_t in = 100;
  loff_t out = 50;
  t.Log("copy", ::copy_file_range(from, &in, to, &out, 60000, 0));
  t.Log("in", in);
  t.Log("out", out);
  t.Content("to");
  in = 99990;
  t.Log("at the end", ::copy_file_range(from, &in, to, &out, 1000, 0));
  t.Log("past the end", ::copy_file_range(from, &in, to, &out, 1000, 0));
  in = 0;
  out = 10;
  t.Log("overlapping", ::copy_file_range(from, &in, from, &out, 100, 0));
  const int reader = t.Open("to", O_RDONLY);
  t.Log("into a reader", ::copy_file_range(from, &in, reader, &out, 10, 0));
  const int appender = t.Open("to", O_RDWR | O_APPEND);
  t.Log("into an appender", ::copy_file_range(from, nullptr, appender, nullptr, 10, 0));
  t.Content("to");
}

void UnlinkWhileOpen(Tree& t) {
  const int fd = t.Open("f", O_RDWR | O_CREAT, 0600);
  t.Log("write", ::write(fd, "before", 6));
  t.Log("unlink", ::unlink((t / "f").c_str()));
  t.Stat("f");
  t.Stat("dead", fd);
  t.Log("write on", ::write(fd, " after", 6));
  char text[20] = "";
  t.Log("read", ::pread(fd, text, sizeof(text), 0));
  t.Note("text", text);
  t.Log("chmod", ::fchmod(fd, 0644));
  t.Log("chown", ::fchown(fd, 5, 6));
  t.Log("truncate", ::ftruncate(fd, 3));
  t.Log("fsync", ::fsync(fd));
  t.Stat("dead", fd);
  const int again = ::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDWR | O_CLOEXEC);
  t.Log("opened again", again < 0 ? -1 : 0);
  t.Close(fd);
  t.Log("write by the second", ::write(again, "XY", 2));
  t.Stat("dead", again);
  ::close(again);
  t.Open("f", O_RDWR | O_CREAT | O_EXCL);
}

void UnnamedFile(Tree& t) {
  const int fd = t.Open("", O_TMPFILE | O_RDWR, 0640);
  t.Stat("unnamed", fd);
  t.Log("write", ::write(fd, "tmp", 3));
  t.Log("link", ::linkat(AT_FDCWD, ("/proc/self/fd/" + std::to_string(fd)).c_str(), AT_FDCWD,
                         (t / "named").c_str(), AT_SYMLINK_FOLLOW));
  t.Stat("named");
  t.Content("named");
  t.Log("second name", ::linkat(fd, "", AT_FDCWD, (t / "named2").c_str(), AT_EMPTY_PATH));
  t.Stat("named2");
  const int sealed = t.Open("", O_TMPFILE | O_WRONLY | O_EXCL, 0600);
  t.Log("never linked", ::linkat(sealed, "", AT_FDCWD, (t / "no").c_str(), AT_EMPTY_PATH));
  t.Open("", O_TMPFILE | O_RDONLY, 0600);
  t.Open("named", O_TMPFILE | O_RDWR, 0600);
  t.Open("missing", O_TMPFILE | O_RDWR, 0600);
  ::umask(027);
  const int masked = t.Open("", O_TMPFILE | O_RDWR, 0666);
  ::umask(022);
  t.Stat("masked", masked);
}

void Mappings(Tree& t) {
  const int fd = t.Open("f", O_RDWR | O_CREAT);
  t.Log("size", ::ftruncate(fd, 8192));
  auto* at = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  t.Log("mmap", at == MAP_FAILED ? -1 : 0);
  std::memcpy(at + 4090, "across the pages", 16);
  t.Log("msync", ::msync(at, 8192, MS_SYNC));
  t.Content("f");
  t.Log("write below the mapping", ::pwrite(fd, "FILE", 4, 0));
  t.Note("mapping sees it", std::string(at, 4));
  t.Log("second mapping", at[4090]);
  at[100] = 'z';
  char c = 0;
  t.Log("read", ::pread(fd, &c, 1, 100));
  t.Log("sees the store", c);
  t.Log("unmap", ::munmap(at, 8192));
  t.Content("f");
  auto* copy = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
  copy[0] = '!';
  ::munmap(copy, 8192);
  t.Content("f");
  const int writer = t.Open("f", O_WRONLY);
  t.Log("map a write-only handle",
        ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, writer, 0) == MAP_FAILED ? -1 : 0);
  const int reader = t.Open("f", O_RDONLY);
  t.Log("map a reader for writing",
        ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, reader, 0) == MAP_FAILED ? -1 : 0);
}

void SynchronousHandles(Tree& t) {
  for (const int flags : {O_SYNC, O_DSYNC, O_SYNC | O_APPEND}) {
    const int fd = t.Open("s", O_RDWR | O_CREAT | flags);
    t.Log("write", ::write(fd, "sync", 4));
  }
  t.Content("s");
  const int fd = t.Open("d", O_RDWR | O_CREAT | O_DIRECT);
  void* aligned = nullptr;
  t.Log("memory", ::posix_memalign(&aligned, 4096, 8192));
  std::memset(aligned, 'D', 8192);
  t.Log("direct write", ::pwrite(fd, aligned, 8192, 4096));
  std::memset(aligned, 0, 8192);
  t.Log("direct read", ::pread(fd, aligned, 8192, 8192));
  std::free(aligned);
  t.Content("d");
  const int directory = t.Open("", O_RDONLY | O_DIRECTORY);
  t.Log("fsync of a directory", ::fsync(directory));
  t.Log("fdatasync of a directory", ::fdatasync(directory));
  t.Log("fdatasync", ::fdatasync(fd));
  t.Log("syncfs", ::syncfs(fd));
  t.Log("range", ::sync_file_range(fd, 0, 100, SYNC_FILE_RANGE_WRITE));
}

void Locks(Tree& t) {
  const int a = t.Open("f", O_RDWR | O_CREAT);
  const int b = t.Open("f", O_RDWR);
  t.Log("exclusive", ::flock(a, LOCK_EX));
  t.Log("second", ::flock(b, LOCK_SH | LOCK_NB));
  t.Log("unlock", ::flock(a, LOCK_UN));
  t.Log("shared", ::flock(b, LOCK_SH | LOCK_NB));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_start = 10;
  lock.l_len = 20;
  t.Log("posix", ::fcntl(a, F_SETLK, &lock));
  t.As(0, 0, {}, [&] {
    struct flock other {};
    other.l_type = F_WRLCK;
    other.l_start = 25;
    other.l_len = 1;
    t.Log("overlap", ::fcntl(b, F_SETLK, &other));
    t.Log("ask", ::fcntl(b, F_GETLK, &other));
    t.Log("type", other.l_type);
    t.Log("start", other.l_start);
    other.l_type = F_RDLCK;
    other.l_start = 30;
    t.Log("beside", ::fcntl(b, F_SETLK, &other));
  });
  struct flock ofd {};
  ofd.l_type = F_WRLCK;
  ofd.l_len = 5;
  t.Log("open file description", ::fcntl(a, F_OFD_SETLK, &ofd));
  t.Log("second", ::fcntl(b, F_OFD_SETLK, &ofd));
}

void Statistics(Tree& t) {
  struct statvfs info {};
  t.Log("statvfs", ::statvfs((t / "").c_str(), &info));
  t.Log("name", static_cast<long>(info.f_namemax));
  t.Log("block", static_cast<long>(info.f_bsize));
  t.Log("blocks", static_cast<long>(info.f_blocks));
}

void ReadsAndWrites(Tree& t) {
  const int fd = t.Open("f", O_RDWR | O_CREAT);
  std::string text(3 << 20, 'b');
  for (size_t i = 0; i < text.size(); i += 1000) {
    text[i] = static_cast<char>(i / 1000);
  }
  t.Log("big write", ::write(fd, text.data(), text.size()));
  std::string back(text.size(), '\0');
  t.Log("big read", ::pread(fd, back.data(), back.size(), 0));
  t.Log("equal", back == text ? 1 : 0);
  t.Log("over the end", ::pread(fd, back.data(), 100, static_cast<off_t>(text.size()) - 10));
  t.Log("at the end", ::pread(fd, back.data(), 100, static_cast<off_t>(text.size())));
  void* forbidden = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  t.Log("bad buffer", ::pwrite(fd, forbidden, 10, 0));
  t.Log("bad read buffer", ::pread(fd, forbidden, 10, 0));
  ::munmap(forbidden, 4096);
  t.Log("negative offset", ::pread(fd, back.data(), 10, -1));
  const int directory = t.Open("", O_RDONLY | O_DIRECTORY);
  t.Log("read of a directory", ::read(directory, back.data(), 10));
  t.Content("f");
}

void OpenedByDescriptorPath(Tree& t) {
  const int path = t.Open("f", O_RDWR | O_CREAT, 0600);
  t.Log("write", ::write(path, "abc", 3));
  const int object = t.Open("f", O_PATH);
  t.Log("unlink", ::unlink((t / "f").c_str()));
  t.Close(path);
  // Nobody has it open any more, but it can still be reached.
  const std::string proc = "/proc/self/fd/" + std::to_string(object);
  t.Log("chmod", ::chmod(proc.c_str(), 0640));
  const int fd = ::open(proc.c_str(), O_RDWR | O_CLOEXEC);
  t.Log("open", fd < 0 ? -1 : 0);
  t.Log("write", ::pwrite(fd, "x", 1, 1));
  t.Log("truncate", ::ftruncate(fd, 2));
  t.Log("fsync", ::fsync(fd));
  t.Stat("reached", fd);
  ::close(fd);
}

}  // namespace

std::vector<PosixCase> FileCases() {
  return {{"OpenFlags", OpenFlags},
          {"TruncateOnOpenOfAFullFile", TruncateOnOpenOfAFullFile},
          {"Append", Append},
          {"Sizes", Sizes},
          {"SizeLimit", SizeLimit},
          {"WriteTimes", WriteTimes},
          {"Allocate", Allocate},
          {"HolesAndSeek", HolesAndSeek},
          {"CopyRange", CopyRange},
          {"UnlinkWhileOpen", UnlinkWhileOpen},
          {"UnnamedFile", UnnamedFile},
          {"Mappings", Mappings},
          {"SynchronousHandles", SynchronousHandles},
          {"Locks", Locks},
          {"Statistics", Statistics},
          {"ReadsAndWrites", ReadsAndWrites},
          {"OpenedByDescriptorPath", OpenedByDescriptorPath}};
}

}  // namespace pmirror::fs
