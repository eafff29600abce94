// SPDX-License-Identifier: BSD-3-Clause
// pmirror's SIGBUS handler, which the program cannot see: sigaction and its kin on SIGBUS read and set a
// disposition of its own, and every SIGBUS that is not a fault of our own copies is delivered to it exactly
// as if we were not there.
//
// The installed action takes over the program's mask and its SA_ONSTACK, SA_RESTART and SA_NODEFER, so that
// the kernel itself picks the stack and the mask that the program asked for. Thread-safe; the handler is
// async-signal-safe.
#pragma once

#include <csignal>

namespace pmirror::interpose {

// At the first replicated mapping. Before, SIGBUS is the kernel's and libc's business alone.
void InstallSigbusHandler();

// sigaction(2) on SIGBUS. Once our handler is installed this is what the program talks to.
int VirtualSigaction(const struct sigaction* action, struct sigaction* old);
bool SigbusIsVirtual();

// What exec would make of the program's disposition: ignored stays ignored. Undo puts our handler back when
// exec failed.
void PrepareSigbusForExec();
void UndoSigbusForExec();

// A flush that cannot return an error failed (P6): SIGBUS, code BUS_OBJERR, at `address`. Not stopped by a
// program that blocks or ignores it.
void RaiseSigbus(const void* address);

}  // namespace pmirror::interpose
