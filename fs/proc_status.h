// SPDX-License-Identifier: BSD-3-Clause
// What /proc says of a program that asked the file system for something. A program may end at any moment:
// "not there" is an answer.
#pragma once

#include <sys/types.h>

#include <string>

namespace pmirror::fs {

// The process that thread `tid` belongs to, or 0 when there is no such thread.
pid_t ProcessOf(pid_t tid);

// True when a fatal signal waits for thread `tid`, and when the thread is gone. (The kernel marks every
// thread of a process that is to die with a pending SIGKILL, whatever the fatal signal was.)
bool IsDying(pid_t tid);

// True when `gid` is a supplementary group of thread `tid`.
bool HasGroup(pid_t tid, gid_t gid);

// The command name of process `pid`, for people; "?" when there is no such process.
std::string CommandOf(pid_t pid);

}  // namespace pmirror::fs
