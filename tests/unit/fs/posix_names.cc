// SPDX-License-Identifier: BSD-3-Clause
// Cases of the POSIX exerciser: names, directories, links, rename.
#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <climits>
#include <cstring>
#include <set>

#include "tests/unit/fs/posix_tree.h"

namespace pmirror::fs {
namespace {

void Kinds(Tree& t) {
  t.Log("mkdir", ::mkdir((t / "d").c_str(), 0751));
  t.Log("fifo", ::mkfifo((t / "fifo").c_str(), 0640));
  t.Log("char", ::mknod((t / "char").c_str(), S_IFCHR | 0600, makedev(1, 3)));
  t.Log("block", ::mknod((t / "block").c_str(), S_IFBLK | 0660, makedev(7, 99)));
  t.Log("big device", ::mknod((t / "big").c_str(), S_IFCHR | 0600, makedev(4000, 70000)));
  t.Log("regular", ::mknod((t / "reg").c_str(), S_IFREG | 0604, 0));
  t.Log("socket", ::mknod((t / "sock").c_str(), S_IFSOCK | 0600, 0));
  t.Log("symlink", ::symlink("no/where", (t / "link").c_str()));
  for (const char* name : {"", "d", "fifo", "char", "block", "big", "reg", "sock", "link"}) {
    t.Stat(name);
  }
  const int device = t.Open("char", O_RDWR);
  t.Log("write to /dev/null's twin", ::write(device, "x", 1));
  const int fifo = t.Open("fifo", O_RDWR | O_NONBLOCK);
  t.Log("fifo write", ::write(fifo, "abc", 3));
  char text[8];
  t.Log("fifo read", ::read(fifo, text, sizeof(text)));
  t.Open("sock", O_RDONLY);
}

void BoundSocket(Tree& t) {
  // Through /proc, because a socket's path is short.
  const int directory = t.Open("", O_RDONLY | O_DIRECTORY);
  const std::string path = "/proc/self/fd/" + std::to_string(directory) + "/s";
  const int listener = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  t.Log("bind", ::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)));
  t.Log("listen", ::listen(listener, 1));
  const int client = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  t.Log("connect", ::connect(client, reinterpret_cast<sockaddr*>(&address), sizeof(address)));
  t.Log("bind again", ::bind(client, reinterpret_cast<sockaddr*>(&address), sizeof(address)));
  ::close(client);
  ::close(listener);
  t.Stat("s");
}

void DirectoryErrors(Tree& t) {
  t.Log("mkdir", ::mkdir((t / "d").c_str(), 0755));
  t.Log("again", ::mkdir((t / "d").c_str(), 0755));
  t.Open("f", O_RDWR | O_CREAT);
  t.Log("over a file", ::mkdir((t / "f").c_str(), 0755));
  t.Log("below a file", ::mkdir((t / "f/x").c_str(), 0755));
  t.Log("below nothing", ::mkdir((t / "no/x").c_str(), 0755));
  t.Log("rmdir of a file", ::rmdir((t / "f").c_str()));
  t.Log("rmdir of nothing", ::rmdir((t / "no").c_str()));
  t.Log("rmdir .", ::rmdir((t / "d/.").c_str()));
  t.Log("rmdir ..", ::rmdir((t / "d/..").c_str()));
  t.Log("sub", ::mkdir((t / "d/e").c_str(), 0700));
  t.Stat("d");
  t.Log("rmdir of a full one", ::rmdir((t / "d").c_str()));
  t.Log("unlink of a directory", ::unlink((t / "d").c_str()));
  t.Log("rmdir sub", ::rmdir((t / "d/e").c_str()));
  t.Stat("d");
  t.Log("rmdir", ::rmdir((t / "d").c_str()));
  t.Log("unlink of nothing", ::unlink((t / "d").c_str()));
  t.Log("unlink below a file", ::unlink((t / "f/x").c_str()));
  t.Open("f/", O_RDONLY);
  t.Open("f", O_RDONLY | O_DIRECTORY);
  t.Open("", O_RDWR);
  t.Open("", O_RDONLY | O_CREAT);
  t.Log("trailing slash", ::mkdir((t / "s/").c_str(), 0755));
  t.Log("file with slash", ::open((t / "newfile/").c_str(), O_CREAT | O_RDWR, 0644));
}

void LongNames(Tree& t) {
  const std::string longest(255, 'n');
  const std::string longer(256, 'n');
  t.Open(longest, O_RDWR | O_CREAT);
  t.Stat(longest);
  t.Open(longer, O_RDWR | O_CREAT);
  t.Open(longer, O_RDONLY);
  t.Open(std::string(1025, 'n'), O_RDONLY);
  t.Log("mkdir", ::mkdir((t / longer).c_str(), 0755));
  t.Log("symlink", ::symlink("x", (t / longer).c_str()));
  t.Log("link", ::link((t / longest).c_str(), (t / longer).c_str()));
  t.Log("rename", ::rename((t / longest).c_str(), (t / longer).c_str()));
  t.Log("unlink", ::unlink((t / longer).c_str()));
  t.Log("directory", ::mkdir((t / std::string(255, 'd')).c_str(), 0755));
  t.Open(std::string(255, 'd') + "/" + std::string(255, 'e'), O_RDWR | O_CREAT);
  const std::string relative = t / std::string(PATH_MAX, 'p');
  t.Log("path too long", ::open(relative.c_str(), O_RDONLY));
  const std::string odd = "\x01\xff \n\"\\*?";
  t.Open(odd, O_RDWR | O_CREAT);
  t.Stat(odd);
}

void DeepTree(Tree& t) {
  int at = ::open((t / "").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  constexpr int kDepth = 300;
  const std::string name(40, 'd');
  for (int i = 0; i < kDepth; ++i) {
    if (::mkdirat(at, name.c_str(), 0755) != 0) {
      t.Log("mkdir at depth " + std::to_string(i), -1);
    }
    const int next = ::openat(at, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ::close(at);
    at = next;
  }
  const int file = ::openat(at, "bottom", O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  t.Log("write at the bottom", ::write(file, "deep", 4));
  ::close(file);
  for (int i = 0; i < kDepth; ++i) {
    ::unlinkat(at, i == 0 ? "bottom" : name.c_str(), i == 0 ? 0 : AT_REMOVEDIR);
    const int up = ::openat(at, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ::close(at);
    at = up;
  }
  t.Log("last", ::unlinkat(at, name.c_str(), AT_REMOVEDIR));
  ::close(at);
}

void Symlinks(Tree& t) {
  t.Open("target", O_RDWR | O_CREAT);
  t.Log("symlink", ::symlink("target", (t / "l").c_str()));
  t.Log("again", ::symlink("other", (t / "l").c_str()));
  t.Log("empty", ::symlink("", (t / "e").c_str()));
  t.Log("long", ::symlink(std::string(4000, 'x').c_str(), (t / "long").c_str()));
  t.Log("longest", ::symlink(std::string(4095, 'x').c_str(), (t / "longest").c_str()));
  t.Log("too long", ::symlink(std::string(4096, 'x').c_str(), (t / "toolong").c_str()));
  t.Stat("long");
  char value[5000];
  t.Log("readlink", ::readlink((t / "long").c_str(), value, sizeof(value)));
  t.Log("readlink short buffer", ::readlink((t / "l").c_str(), value, 3));
  t.Log("readlink of a file", ::readlink((t / "target").c_str(), value, sizeof(value)));
  t.Log("loop a", ::symlink("b", (t / "a").c_str()));
  t.Log("loop b", ::symlink("a", (t / "b").c_str()));
  t.Open("a", O_RDONLY);
  t.Open("l", O_RDONLY | O_NOFOLLOW);
  t.Open("l", O_RDWR);
  t.Log("dangling", ::symlink("nothing", (t / "dangling").c_str()));
  t.Open("dangling", O_RDONLY);
  t.Open("dangling", O_RDWR | O_CREAT | O_EXCL);
  t.Open("dangling", O_RDWR | O_CREAT);
  t.Stat("nothing");
  t.Log("chown of the link", ::lchown((t / "l").c_str(), 1000, 1001));
  t.Stat("l");
  t.Stat("target");
  t.Log("chmod of the link", ::fchmodat(AT_FDCWD, (t / "l").c_str(), 0600, AT_SYMLINK_NOFOLLOW));
  const timespec times[2] = {{.tv_sec = 1000, .tv_nsec = 7}, {.tv_sec = 2000, .tv_nsec = 9}};
  t.Log("times of the link", ::utimensat(AT_FDCWD, (t / "l").c_str(), times, AT_SYMLINK_NOFOLLOW));
  struct stat info {};
  ::lstat((t / "l").c_str(), &info);
  t.Log("mtime", info.st_mtim.tv_sec * 10 + info.st_mtim.tv_nsec);
  t.Log("unlink", ::unlink((t / "l").c_str()));
  t.Stat("target");
}

void HardLinks(Tree& t) {
  const int fd = t.Open("a", O_RDWR | O_CREAT);
  t.Log("mkdir", ::mkdir((t / "d").c_str(), 0755));
  t.Log("link", ::link((t / "a").c_str(), (t / "d/b").c_str()));
  t.Log("again", ::link((t / "a").c_str(), (t / "d/b").c_str()));
  t.Log("of a directory", ::link((t / "d").c_str(), (t / "e").c_str()));
  t.Log("of nothing", ::link((t / "no").c_str(), (t / "e").c_str()));
  t.Log("write", ::write(fd, "shared", 6));
  t.Content("d/b");
  t.Stat("a");
  struct stat one {};
  struct stat two {};
  ::stat((t / "a").c_str(), &one);
  ::stat((t / "d/b").c_str(), &two);
  t.Log("same inode", one.st_ino == two.st_ino ? 1 : 0);
  t.Times("of a linked file", "a", [&] { ::link((t / "a").c_str(), (t / "c").c_str()); });
  t.Times("when a name goes", "a", [&] { ::unlink((t / "c").c_str()); });
  t.Log("unlink", ::unlink((t / "a").c_str()));
  t.Stat("d/b");
  t.Stat("open", fd);
  t.Log("symlink", ::symlink("x", (t / "s").c_str()));
  t.Log("link to a symlink", ::link((t / "s").c_str(), (t / "s2").c_str()));
  t.Stat("s2");
  t.Log("fifo", ::mkfifo((t / "p").c_str(), 0600));
  t.Log("link to a fifo", ::link((t / "p").c_str(), (t / "p2").c_str()));
  t.Stat("p2");
  t.Log("by descriptor", ::linkat(fd, "", AT_FDCWD, (t / "back").c_str(), AT_EMPTY_PATH));
  t.Log("unlink b", ::unlink((t / "d/b").c_str()));
  t.Log("unlink back", ::unlink((t / "back").c_str()));
  t.Stat("open", fd);
  t.Log("link of the dead", ::linkat(fd, "", AT_FDCWD, (t / "ghost").c_str(), AT_EMPTY_PATH));
}

void Make(Tree& t, const std::string& kind, const std::string& name) {
  const std::string path = t / name;
  if (kind == "file") {
    ::close(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  } else if (kind == "dir" || kind == "full") {
    ::mkdir(path.c_str(), 0755);
    if (kind == "full") {
      ::mkdir((path + "/sub").c_str(), 0755);
    }
  } else if (kind == "link") {
    ::symlink("x", path.c_str());
  } else if (kind == "fifo") {
    ::mkfifo(path.c_str(), 0644);
  }
}

void RenameMatrix(Tree& t) {
  const char* kinds[] = {"file", "dir", "full", "link", "fifo", "none"};
  int i = 0;
  for (const unsigned flags : {0U, unsigned{RENAME_NOREPLACE}, unsigned{RENAME_EXCHANGE}}) {
    for (const char* from : kinds) {
      for (const char* to : kinds) {
        const std::string where = "r" + std::to_string(i++);
        ::mkdir((t / where).c_str(), 0755);
        ::mkdir((t / (where + "/x")).c_str(), 0755);
        Make(t, from, where + "/a");
        Make(t, to, where + "/x/b");
        t.Log(std::string(from) + " to " + to + " flags " + std::to_string(flags),
              ::renameat2(AT_FDCWD, (t / (where + "/a")).c_str(), AT_FDCWD, (t / (where + "/x/b")).c_str(),
                          flags));
        t.Stat(where);
        t.Stat(where + "/x");
      }
    }
  }
}

void RenameCorners(Tree& t) {
  Make(t, "full", "d");
  Make(t, "file", "f");
  t.Log("into itself", ::rename((t / "d").c_str(), (t / "d/sub/x").c_str()));
  t.Log("over its parent", ::rename((t / "d/sub").c_str(), (t / "d").c_str()));
  t.Log("to itself", ::rename((t / "f").c_str(), (t / "f").c_str()));
  t.Log("below a file", ::rename((t / "d").c_str(), (t / "f/x").c_str()));
  t.Log("to .", ::rename((t / "d").c_str(), (t / ".").c_str()));
  ::link((t / "f").c_str(), (t / "g").c_str());
  t.Log("two names of one file", ::rename((t / "f").c_str(), (t / "g").c_str()));
  t.Stat("f");
  t.Stat("g");
  t.Log("both flags", ::renameat2(AT_FDCWD, (t / "f").c_str(), AT_FDCWD, (t / "h").c_str(),
                                  RENAME_NOREPLACE | RENAME_EXCHANGE));
  t.Log("unknown flag", ::renameat2(AT_FDCWD, (t / "f").c_str(), AT_FDCWD, (t / "h").c_str(), 1U << 10));
  const int fd = t.Open("h", O_RDWR | O_CREAT);
  ::write(fd, "old", 3);
  t.Times("renamed file", "f", [&] { ::rename((t / "f").c_str(), (t / "h").c_str()); });
  t.Stat("replaced, open", fd);
  char text[8];
  t.Log("read of the replaced", ::pread(fd, text, sizeof(text), 0));
  t.Times("directory of a rename", "d", [&] { ::rename((t / "h").c_str(), (t / "d/h").c_str()); });
  const int inner = t.Open("d", O_RDONLY | O_DIRECTORY);
  t.Log("move an open directory", ::rename((t / "d").c_str(), (t / "e").c_str()));
  t.Log("create in it", ::openat(inner, "new", O_RDWR | O_CREAT | O_CLOEXEC, 0600) < 0 ? -1 : 0);
  t.Stat("e/new");
  t.Log("exchange across",
        ::renameat2(AT_FDCWD, (t / "e/h").c_str(), AT_FDCWD, (t / "e/sub").c_str(), RENAME_EXCHANGE));
  t.Stat("e/h");
  t.Stat("e/sub");
}

void RemovedDirectory(Tree& t) {
  Make(t, "dir", "d");
  const int fd = t.Open("d", O_RDONLY | O_DIRECTORY);
  t.Log("rmdir", ::rmdir((t / "d").c_str()));
  t.Log("create in it", ::openat(fd, "f", O_RDWR | O_CREAT, 0600));
  t.Log("mkdir in it", ::mkdirat(fd, "f", 0700));
  t.Log("chmod", ::fchmod(fd, 0700));
  t.Log("fsync", ::fsync(fd));
  t.Stat("removed", fd);
  DIR* stream = ::fdopendir(::dup(fd));
  errno = 0;
  t.Log("empty", ::readdir(stream) == nullptr ? errno : -2);
  ::closedir(stream);
}

std::set<std::string> List(DIR* stream) {
  std::set<std::string> names;
  while (const dirent* entry = ::readdir(stream)) {
    names.insert(entry->d_name);
  }
  return names;
}

void BigDirectory(Tree& t) {
  constexpr int kFiles = 3000;
  ::mkdir((t / "big").c_str(), 0755);
  for (int i = 0; i < kFiles; ++i) {
    ::close(::open((t / ("big/file-with-a-middling-name-" + std::to_string(i))).c_str(),
                   O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
  }
  DIR* stream = ::opendir((t / "big").c_str());
  t.Log("all listed", static_cast<long>(List(stream).size()));
  ::rewinddir(stream);
  t.Log("again", static_cast<long>(List(stream).size()));
  ::rewinddir(stream);
  // Every entry is seen exactly once, also when those already seen are removed.
  std::set<std::string> seen;
  long twice = 0;
  while (const dirent* entry = ::readdir(stream)) {
    twice += seen.insert(entry->d_name).second ? 0 : 1;
    if (entry->d_name[0] != '.') {
      ::unlink((t / ("big/" + std::string(entry->d_name))).c_str());
    }
  }
  t.Log("seen while removing", static_cast<long>(seen.size()));
  t.Log("seen twice", twice);
  ::rewinddir(stream);
  t.Log("left", static_cast<long>(List(stream).size()));
  ::closedir(stream);
  t.Log("rmdir", ::rmdir((t / "big").c_str()));
}

void SeekInDirectory(Tree& t) {
  for (int i = 0; i < 200; ++i) {
    Make(t, "file", "e" + std::to_string(i));
  }
  DIR* stream = ::opendir((t / "").c_str());
  std::vector<std::pair<long, std::string>> places;
  for (;;) {
    const long place = ::telldir(stream);
    const dirent* entry = ::readdir(stream);
    if (entry == nullptr) {
      break;
    }
    places.emplace_back(place, entry->d_name);
  }
  long wrong = 0;
  for (size_t i = 0; i < places.size(); i += 7) {
    const auto& [place, name] = places[places.size() - 1 - i];
    ::seekdir(stream, place);
    const dirent* entry = ::readdir(stream);
    wrong += entry != nullptr && name == entry->d_name ? 0 : 1;
  }
  t.Log("wrong after seekdir", wrong);
  ::closedir(stream);
}

// The numbers and types that a listing shows are those that stat shows.
void ListingAgreesWithStat(Tree& t) {
  for (const char* kind : {"file", "dir", "link", "fifo"}) {
    Make(t, kind, kind);
  }
  Make(t, "full", "sub");
  for (const char* where : {"", "sub"}) {
    DIR* stream = ::opendir((t / where).c_str());
    while (const dirent* entry = ::readdir(stream)) {
      if (std::string(where).empty() && std::strcmp(entry->d_name, "..") == 0) {
        continue;  // at the root it is outside
      }
      struct stat info {};
      ::fstatat(::dirfd(stream), entry->d_name, &info, AT_SYMLINK_NOFOLLOW);
      const bool same = info.st_ino == entry->d_ino && IFTODT(info.st_mode) == entry->d_type;
      if (!same) {
        t.Note("differs", entry->d_name);
      }
    }
    ::closedir(stream);
  }
}

void DirectoryTimes(Tree& t) {
  Make(t, "dir", "d");
  t.Times("create", "d", [&] { Make(t, "file", "d/f"); });
  t.Times("mkdir", "d", [&] { Make(t, "dir", "d/s"); });
  t.Times("link", "d", [&] { ::link((t / "d/f").c_str(), (t / "d/g").c_str()); });
  t.Times("symlink", "d", [&] { Make(t, "link", "d/l"); });
  t.Times("unlink", "d", [&] { ::unlink((t / "d/g").c_str()); });
  t.Times("rmdir", "d", [&] { ::rmdir((t / "d/s").c_str()); });
  t.Times("rename in", "d", [&] { ::rename((t / "d/f").c_str(), (t / "d/f2").c_str()); });
  t.Times("write to a child", "d", [&] { ::truncate((t / "d/f2").c_str(), 5); });
  t.Times("failed mkdir", "d", [&] { ::mkdir((t / "d/f2").c_str(), 0755); });
}

}  // namespace

std::vector<PosixCase> NameCases() {
  return {{"Kinds", Kinds},
          {"BoundSocket", BoundSocket},
          {"DirectoryErrors", DirectoryErrors},
          {"LongNames", LongNames},
          {"DeepTree", DeepTree},
          {"Symlinks", Symlinks},
          {"HardLinks", HardLinks},
          {"RenameMatrix", RenameMatrix},
          {"RenameCorners", RenameCorners},
          {"RemovedDirectory", RemovedDirectory},
          {"BigDirectory", BigDirectory},
          {"SeekInDirectory", SeekInDirectory},
          {"ListingAgreesWithStat", ListingAgreesWithStat},
          {"DirectoryTimes", DirectoryTimes}};
}

}  // namespace pmirror::fs
