// SPDX-License-Identifier: BSD-3-Clause
// Cases of the POSIX exerciser: owners, modes, times, extended attributes, ACLs.
#include <endian.h>
#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstring>

#include "tests/unit/fs/posix_tree.h"

namespace pmirror::fs {
namespace {

constexpr uid_t kAnn = 1001;
constexpr gid_t kStaff = 2001;
constexpr uid_t kBob = 1002;
constexpr gid_t kGuests = 2002;
constexpr gid_t kExtra = 2003;

void File(Tree& t, const std::string& name, mode_t mode, uid_t uid, gid_t gid) {
  const std::string path = t / name;
  ::close(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  t.Log("chown " + name, ::chown(path.c_str(), uid, gid));
  t.Log("chmod " + name, ::chmod(path.c_str(), mode));
}

void Directory(Tree& t, const std::string& name, mode_t mode, uid_t uid, gid_t gid) {
  t.Log("mkdir " + name, ::mkdir((t / name).c_str(), 0700));
  t.Log("chown " + name, ::chown((t / name).c_str(), uid, gid));
  t.Log("chmod " + name, ::chmod((t / name).c_str(), mode));
}

void Ownership(Tree& t) {
  Directory(t, "open", 0777, 0, 0);
  ::umask(0);
  t.As(kAnn, kStaff, {kExtra}, [&] {
    t.Open("open/file", O_RDWR | O_CREAT, 0666);
    ::mkdir((t / "open/dir").c_str(), 0777);
    ::symlink("x", (t / "open/link").c_str());
    ::mkfifo((t / "open/fifo").c_str(), 0666);
    t.Log("device without the right", ::mknod((t / "open/dev").c_str(), S_IFCHR | 0600, 259));
    t.Log("away", ::chown((t / "open/file").c_str(), kBob, -1));
    t.Log("to an own group", ::chown((t / "open/file").c_str(), -1, kExtra));
    t.Log("to a foreign group", ::chown((t / "open/file").c_str(), -1, kGuests));
    ::umask(0137);
    t.Open("open/masked", O_RDWR | O_CREAT, 0777);
    ::mkdir((t / "open/masked-dir").c_str(), 0777);
    ::mkfifo((t / "open/masked-fifo").c_str(), 0777);
  });
  ::umask(022);
  for (const char* name : {"file", "dir", "link", "fifo", "masked", "masked-dir", "masked-fifo"}) {
    t.Stat(std::string("open/") + name);
  }
}

void Permissions(Tree& t) {
  File(t, "private", 0600, kAnn, kStaff);
  File(t, "group", 0640, kAnn, kStaff);
  File(t, "exec", 0711, kAnn, kStaff);
  Directory(t, "closed", 0700, kAnn, kStaff);
  Directory(t, "pass", 0711, kAnn, kStaff);
  File(t, "pass/known", 0644, kAnn, kStaff);
  const auto tries = [&] {
    for (const char* name : {"private", "group", "exec", "closed/x", "pass/known"}) {
      t.Open(name, O_RDONLY);
      t.Open(name, O_WRONLY);
      t.Log(std::string("access ") + name, ::access((t / name).c_str(), X_OK));
      t.Log(std::string("chmod ") + name, ::chmod((t / name).c_str(), 0600));
      t.Log(std::string("truncate ") + name, ::truncate((t / name).c_str(), 1));
      const timespec omit[2] = {{.tv_sec = 0, .tv_nsec = UTIME_OMIT}, {.tv_sec = 9, .tv_nsec = 9}};
      const timespec now[2] = {{.tv_sec = 0, .tv_nsec = UTIME_NOW}, {.tv_sec = 0, .tv_nsec = UTIME_NOW}};
      t.Log(std::string("set time ") + name, ::utimensat(AT_FDCWD, (t / name).c_str(), omit, 0));
      t.Log(std::string("touch ") + name, ::utimensat(AT_FDCWD, (t / name).c_str(), now, 0));
    }
    t.Open("pass", O_RDONLY | O_DIRECTORY);
    t.Log("make in pass", ::mkdir((t / "pass/new").c_str(), 0755));
    t.Log("rename from pass", ::rename((t / "pass/known").c_str(), (t / "pass/other").c_str()));
    t.Log("unlink from pass", ::unlink((t / "pass/known").c_str()));
    t.Log("chdir", ::chdir((t / "closed").c_str()));
  };
  t.As(kBob, kGuests, {kStaff}, tries);
  t.As(kBob, kGuests, {}, tries);
  t.As(kAnn, kStaff, {}, tries);
}

void SharedByGroup(Tree& t) {
  Directory(t, "d", 0770, 0, kExtra);
  t.As(kAnn, kStaff, {kExtra}, [&] {
    t.Open("d/f", O_RDWR | O_CREAT, 0660);
    t.Log("mkdir", ::mkdir((t / "d/s").c_str(), 0770));
  });
  t.Stat("d/f");
  t.As(kBob, kGuests, {}, [&] { t.Open("d/f", O_RDONLY); });
}

void SetgidDirectory(Tree& t) {
  Directory(t, "d", 02777, 0, kExtra);
  ::umask(0);
  t.As(kAnn, kStaff, {}, [&] {
    t.Open("d/f", O_RDWR | O_CREAT, 0666);
    t.Open("d/setgid-not-member", O_RDWR | O_CREAT, 02775);
    ::mkdir((t / "d/s").c_str(), 0777);
    t.Log("chmod setgid, foreign group", ::chmod((t / "d/f").c_str(), 02755));
  });
  t.As(kAnn, kStaff, {kExtra}, [&] {
    t.Open("d/setgid-member", O_RDWR | O_CREAT, 02775);
    t.Open("d", O_TMPFILE | O_RDWR, 02775);
  });
  ::umask(022);
  for (const char* name : {"d/f", "d/s", "d/setgid-not-member", "d/setgid-member"}) {
    t.Stat(name);
  }
}

void StickyDirectory(Tree& t) {
  Directory(t, "tmp", 01777, 0, 0);
  t.As(kAnn, kStaff, {}, [&] {
    t.Open("tmp/ann", O_RDWR | O_CREAT, 0666);
    t.Log("mkdir", ::mkdir((t / "tmp/ann-dir").c_str(), 0777));
  });
  t.Log("chmod", ::chmod((t / "tmp/ann").c_str(), 0666));
  t.As(kBob, kGuests, {}, [&] {
    t.Log("unlink", ::unlink((t / "tmp/ann").c_str()));
    t.Log("rename", ::rename((t / "tmp/ann").c_str(), (t / "tmp/bob").c_str()));
    t.Log("rmdir", ::rmdir((t / "tmp/ann-dir").c_str()));
    t.Open("tmp/ann", O_RDWR);
    t.Open("tmp/ann", O_RDWR | O_CREAT);
    t.Open("tmp/bob", O_RDWR | O_CREAT);
    t.Log("replace", ::rename((t / "tmp/bob").c_str(), (t / "tmp/ann").c_str()));
    t.Log("link", ::link((t / "tmp/ann").c_str(), (t / "tmp/bobs-link").c_str()));
  });
}

// What takes setuid and setgid bits away, by whom.
void SetuidBits(Tree& t) {
  ::chmod((t / "").c_str(), 0777);
  const auto each = [&](const std::string& what, const std::function<void(const std::string&)>& call) {
    for (const mode_t mode : {04777, 02777, 06777, 02767, 06767}) {
      File(t, "f", mode, kAnn, kStaff);
      // Seen before, so that a mode the kernel remembers would show.
      struct stat info {};
      ::stat((t / "f").c_str(), &info);
      call(t / "f");
      t.Note("after", what);
      t.Stat("f");
      ::unlink((t / "f").c_str());
    }
  };
  const auto writes = [&](const std::string& who,
                          const std::function<void(const std::function<void()>&)>& run) {
    each(who + " write", [&](const std::string& path) {
      run([&] {
        const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
        t.Log("write", ::write(fd, "x", 1));
        t.Stat("at once", fd);
        ::close(fd);
      });
    });
    each(who + " truncate",
         [&](const std::string& path) { run([&] { t.Log("truncate", ::truncate(path.c_str(), 9)); }); });
    each(who + " open truncating", [&](const std::string& path) {
      run([&] { ::close(::open(path.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC)); });
    });
    each(who + " allocate", [&](const std::string& path) {
      run([&] {
        const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
        t.Log("allocate", ::fallocate(fd, 0, 0, 100));
        ::close(fd);
      });
    });
    each(who + " empty write", [&](const std::string& path) {
      run([&] {
        const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
        t.Log("write", ::write(fd, "", 0));
        ::close(fd);
      });
    });
    each(who + " chown",
         [&](const std::string& path) { run([&] { t.Log("chown", ::chown(path.c_str(), -1, kStaff)); }); });
    each(who + " chmod",
         [&](const std::string& path) { run([&] { t.Log("chmod", ::chmod(path.c_str(), 06755)); }); });
  };
  writes("root", [](const std::function<void()>& calls) { calls(); });
  writes("owner", [&](const std::function<void()>& calls) { t.As(kAnn, kStaff, {}, calls); });
  writes("owner outside the group",
         [&](const std::function<void()>& calls) { t.As(kAnn, kGuests, {}, calls); });
  writes("other", [&](const std::function<void()>& calls) { t.As(kBob, kGuests, {}, calls); });
}

void Times(Tree& t) {
  File(t, "f", 0666, kAnn, kStaff);
  const auto set = [&](const char* what, timespec atime, timespec mtime) {
    const timespec times[2] = {atime, mtime};
    t.Log(what, ::utimensat(AT_FDCWD, (t / "f").c_str(), times, 0));
    struct stat info {};
    ::stat((t / "f").c_str(), &info);
    t.Note("atime", std::to_string(info.st_atim.tv_sec < 5000 ? info.st_atim.tv_sec : -1) + "." +
                        std::to_string(info.st_atim.tv_sec < 5000 ? info.st_atim.tv_nsec : 0));
    t.Note("mtime", std::to_string(info.st_mtim.tv_sec < 5000 ? info.st_mtim.tv_sec : -1) + "." +
                        std::to_string(info.st_mtim.tv_sec < 5000 ? info.st_mtim.tv_nsec : 0));
  };
  set("both", {.tv_sec = 1, .tv_nsec = 123456789}, {.tv_sec = 2, .tv_nsec = 999999999});
  set("only mtime", {.tv_sec = 0, .tv_nsec = UTIME_OMIT}, {.tv_sec = 7, .tv_nsec = 1});
  set("only atime", {.tv_sec = 8, .tv_nsec = 2}, {.tv_sec = 0, .tv_nsec = UTIME_OMIT});
  set("neither", {.tv_sec = 0, .tv_nsec = UTIME_OMIT}, {.tv_sec = 0, .tv_nsec = UTIME_OMIT});
  set("atime now", {.tv_sec = 0, .tv_nsec = UTIME_NOW}, {.tv_sec = 0, .tv_nsec = UTIME_OMIT});
  set("before the epoch", {.tv_sec = -5, .tv_nsec = 0}, {.tv_sec = -6, .tv_nsec = 1});
  set("bad", {.tv_sec = 0, .tv_nsec = 1000000000}, {.tv_sec = 0, .tv_nsec = 0});
  t.As(kBob, kGuests, {}, [&] {
    set("by another", {.tv_sec = 1, .tv_nsec = 0}, {.tv_sec = 1, .tv_nsec = 0});
    set("now by another who may write", {.tv_sec = 0, .tv_nsec = UTIME_NOW},
        {.tv_sec = 0, .tv_nsec = UTIME_NOW});
  });
  t.Times("utimensat", "f", [&] { set("x", {.tv_sec = 1, .tv_nsec = 0}, {.tv_sec = 1, .tv_nsec = 0}); });
}

void Xattrs(Tree& t) {
  File(t, "f", 0644, kAnn, kStaff);
  const std::string f = t / "f";
  char value[70000];
  t.Log("set", ::setxattr(f.c_str(), "user.a", "value", 5, 0));
  t.Log("create", ::setxattr(f.c_str(), "user.a", "v", 1, XATTR_CREATE));
  t.Log("replace", ::setxattr(f.c_str(), "user.b", "v", 1, XATTR_REPLACE));
  t.Log("empty", ::setxattr(f.c_str(), "user.empty", "", 0, 0));
  t.Log("get", ::getxattr(f.c_str(), "user.a", value, sizeof(value)));
  t.Log("size", ::getxattr(f.c_str(), "user.a", nullptr, 0));
  t.Log("short", ::getxattr(f.c_str(), "user.a", value, 2));
  t.Log("get empty", ::getxattr(f.c_str(), "user.empty", value, sizeof(value)));
  t.Log("missing", ::getxattr(f.c_str(), "user.none", value, sizeof(value)));
  t.Log("list size", ::listxattr(f.c_str(), nullptr, 0));
  t.Log("list", ::listxattr(f.c_str(), value, sizeof(value)));
  t.Log("short list", ::listxattr(f.c_str(), value, 3));
  t.Log("trusted", ::setxattr(f.c_str(), "trusted.t", "1", 1, 0));
  t.Log("security", ::setxattr(f.c_str(), "security.pm", "1", 1, 0));
  t.Log("odd name space", ::setxattr(f.c_str(), "odd.x", "1", 1, 0));
  t.Log("no name space", ::setxattr(f.c_str(), "odd", "1", 1, 0));
  t.Log("long name", ::setxattr(f.c_str(), ("user." + std::string(250, 'n')).c_str(), "1", 1, 0));
  t.Log("too long name", ::setxattr(f.c_str(), ("user." + std::string(251, 'n')).c_str(), "1", 1, 0));
  t.Log("too big", ::setxattr(f.c_str(), "user.big", value, 65537, 0));
  t.Log("big", ::setxattr(f.c_str(), "user.big", value, 2000, 0));
  t.Log("remove", ::removexattr(f.c_str(), "user.a"));
  t.Log("remove again", ::removexattr(f.c_str(), "user.a"));
  t.Log("symlink", ::symlink("f", (t / "l").c_str()));
  t.Log("user on a symlink", ::lsetxattr((t / "l").c_str(), "user.a", "1", 1, 0));
  t.Log("trusted on a symlink", ::lsetxattr((t / "l").c_str(), "trusted.a", "1", 1, 0));
  t.Log("through the symlink", ::getxattr((t / "l").c_str(), "user.empty", value, sizeof(value)));
  t.Log("fifo", ::mkfifo((t / "p").c_str(), 0666));
  t.Log("user on a fifo", ::setxattr((t / "p").c_str(), "user.a", "1", 1, 0));
  t.Log("on a directory", ::setxattr((t / "").c_str(), "user.dir", "1", 1, 0));
  t.Times("setxattr", "f", [&] { ::setxattr(f.c_str(), "user.c", "1", 1, 0); });
  t.Times("removexattr", "f", [&] { ::removexattr(f.c_str(), "user.c"); });
  t.As(kBob, kGuests, {}, [&] {
    t.Log("list", ::listxattr(f.c_str(), value, sizeof(value)));
    t.Log("get", ::getxattr(f.c_str(), "user.empty", value, sizeof(value)));
    t.Log("set", ::setxattr(f.c_str(), "user.x", "1", 1, 0));
    t.Log("get trusted", ::getxattr(f.c_str(), "trusted.t", value, sizeof(value)));
  });
  t.As(kAnn, kStaff, {}, [&] {
    t.Log("set by the owner", ::setxattr(f.c_str(), "user.x", "1", 1, 0));
    t.Log("trusted by the owner", ::setxattr(f.c_str(), "trusted.x", "1", 1, 0));
  });
}

// File capabilities go with the first write, whoever writes.
void Capabilities(Tree& t) {
  File(t, "f", 0755, kAnn, kStaff);
  const uint32_t capability[5] = {htole32(0x02000001), htole32(1U << 10), 0, 0, 0};
  const std::string f = t / "f";
  char value[64];
  for (const bool by_root : {true, false}) {
    t.Log("set", ::setxattr(f.c_str(), "security.capability", capability, sizeof(capability), 0));
    t.Log("there", ::getxattr(f.c_str(), "security.capability", value, sizeof(value)));
    t.As(by_root ? 0 : kAnn, kStaff, {}, [&] {
      const int fd = ::open(f.c_str(), O_WRONLY | O_CLOEXEC);
      t.Log("write", ::write(fd, "x", 1));
      ::close(fd);
    });
    t.Log("gone", ::getxattr(f.c_str(), "security.capability", value, sizeof(value)));
  }
  t.Log("set", ::setxattr(f.c_str(), "security.capability", capability, sizeof(capability), 0));
  t.Log("truncate", ::truncate(f.c_str(), 0));
  t.Log("gone", ::getxattr(f.c_str(), "security.capability", value, sizeof(value)));
  t.Log("set", ::setxattr(f.c_str(), "security.capability", capability, sizeof(capability), 0));
  t.Log("chown", ::chown(f.c_str(), kBob, -1));
  t.Log("gone", ::getxattr(f.c_str(), "security.capability", value, sizeof(value)));
}

struct AclEntry {
  uint16_t tag;
  uint16_t rights;
  uint32_t id;
};

int SetAcl(const std::string& path, const char* which, const std::vector<AclEntry>& entries) {
  std::string value("\x02\0\0\0", 4);
  for (const AclEntry& entry : entries) {
    value.append(reinterpret_cast<const char*>(&entry), sizeof(entry));
  }
  return ::setxattr(path.c_str(), which, value.data(), value.size(), 0);
}

constexpr char kAccess[] = "system.posix_acl_access";
constexpr char kDefault[] = "system.posix_acl_default";
constexpr uint32_t kNobody = UINT32_MAX;

void Acls(Tree& t) {
  File(t, "f", 0640, kAnn, kStaff);
  const std::vector<AclEntry> bob_reads = {
      {1, 6, kNobody}, {2, 4, kBob}, {4, 4, kNobody}, {16, 4, kNobody}, {32, 0, kNobody}};
  t.As(kBob, kGuests, {}, [&] { t.Open("f", O_RDONLY); });
  t.Log("acl", SetAcl(t / "f", kAccess, bob_reads));
  t.Stat("f");
  t.As(kBob, kGuests, {}, [&] {
    t.Open("f", O_RDONLY);
    t.Open("f", O_WRONLY);
    t.Log("set", SetAcl(t / "f", kAccess, bob_reads));
  });
  t.Log("mask away", ::chmod((t / "f").c_str(), 0600));
  t.As(kBob, kGuests, {}, [&] { t.Open("f", O_RDONLY); });
  t.Log("remove", ::removexattr((t / "f").c_str(), kAccess));
  t.Stat("f");
  Directory(t, "d", 0770, kAnn, kStaff);
  const std::vector<AclEntry> inherited = {
      {1, 7, kNobody}, {2, 7, kBob}, {4, 5, kNobody}, {16, 7, kNobody}, {32, 1, kNobody}};
  t.Log("default", SetAcl(t / "d", kDefault, inherited));
  t.Log("default on a file", SetAcl(t / "f", kDefault, inherited));
  ::umask(077);
  t.As(kAnn, kStaff, {}, [&] {
    ::umask(077);
    t.Open("d/f", O_RDWR | O_CREAT, 0666);
    t.Log("mkdir", ::mkdir((t / "d/s").c_str(), 0777));
    t.Log("fifo", ::mkfifo((t / "d/p").c_str(), 0664));
    t.Log("symlink", ::symlink("x", (t / "d/l").c_str()));
    t.Open("d/s/deeper", O_RDWR | O_CREAT, 0640);
    const int unnamed = t.Open("d", O_TMPFILE | O_RDWR, 0666);
    t.Stat("unnamed", unnamed);
  });
  ::umask(022);
  t.As(kBob, kGuests, {}, [&] {
    t.Open("d/f", O_RDWR);
    t.Open("d/s/deeper", O_RDONLY);
  });
  t.Log("minimal acl", SetAcl(t / "f", kAccess, {{1, 6, kNobody}, {4, 4, kNobody}, {32, 4, kNobody}}));
  t.Stat("f");
  t.Log("malformed acl", SetAcl(t / "f", kAccess, {{1, 6, kNobody}, {1, 4, kNobody}}));
  File(t, "setgid", 02755, kAnn, kStaff);
  t.As(kAnn, kGuests, {}, [&] { t.Log("by a non-member", SetAcl(t / "setgid", kAccess, bob_reads)); });
  t.Stat("setgid");
  File(t, "setgid2", 02755, kAnn, kStaff);
  t.As(kAnn, kGuests, {kStaff}, [&] { t.Log("by a member", SetAcl(t / "setgid2", kAccess, bob_reads)); });
  t.Stat("setgid2");
}

}  // namespace

std::vector<PosixCase> RightsCases() {
  return {{"Ownership", Ownership},
          {"Permissions", Permissions},
          {"SharedByGroup", SharedByGroup},
          {"SetgidDirectory", SetgidDirectory},
          {"StickyDirectory", StickyDirectory},
          {"SetuidBits", SetuidBits},
          {"Times", Times},
          {"Xattrs", Xattrs},
          {"Capabilities", Capabilities},
          {"Acls", Acls}};
}

}  // namespace pmirror::fs
