// SPDX-License-Identifier: BSD-3-Clause
// The language of the POSIX exerciser: a case is a function of a Tree that makes system calls under tree /
// "name" and logs what they answered. It is run on a plain directory and on a mount over the same file
// system; the two logs and the two trees must be equal.
#pragma once

#include <sys/stat.h>

#include <functional>
#include <string>
#include <vector>

namespace pmirror::fs {

class Tree {
 public:
  explicit Tree(std::string root) : root_(std::move(root)) {}

  // The path of a name in the tree.
  std::string operator/(const std::string& name) const { return name.empty() ? root_ : root_ + "/" + name; }

  // Logs the result of a system call, with the name of its errno when it is -1.
  void Log(const std::string& what, long result);
  void Note(const std::string& what, const std::string& text);
  // Logs all that stat must say the same in both trees: type, mode, owner, links, size (of all but
  // directories), device number.
  void Stat(const std::string& name);
  void Stat(const std::string& what, int fd);
  // Logs the bytes of a file.
  void Content(const std::string& name);
  // Opens, logs, and returns the descriptor (-1 too), which is closed at the end of the case.
  int Open(const std::string& name, int flags, mode_t mode = 0644);
  void Close(int fd);

  // Logs which times of the object `call` has changed. Waits first for the clock to move past them.
  void Times(const std::string& what, const std::string& name, const std::function<void()>& call);

  // Runs `calls` in a child process; what it logs is added here. A program that maps files of a mount must be
  // another process than the one that serves it: the kernel writes pages back with the mapper's address space
  // locked.
  void Apart(const std::function<void()>& calls);
  // The same as another user.
  void As(uid_t uid, gid_t gid, const std::vector<gid_t>& groups, const std::function<void()>& calls);

  // Everything in the tree, one line an object: path, attributes, symlink value, extended attributes,
  // content.
  std::vector<std::string> Snapshot() const;

  const std::vector<std::string>& log() const { return log_; }
  void CloseAll();

 private:
  std::string root_;
  std::vector<std::string> log_;
  std::vector<int> open_;
};

struct PosixCase {
  const char* name;
  void (*run)(Tree& tree);
};

// In posix_names.cc, posix_files.cc and posix_rights.cc.
std::vector<PosixCase> NameCases();
std::vector<PosixCase> FileCases();
std::vector<PosixCase> RightsCases();

}  // namespace pmirror::fs
