/* SPDX-License-Identifier: BSD-3-Clause */
/* libpmirror: for programs that know that their files are replicated. Names follow the actions of SNIA's
 * NVM.PM.FILE mode. Everything works without the preload library too, then through msync(2) on the mount:
 * slower, same promises.
 *
 * All functions are thread-safe; pmirror_flush and pmirror_sync are async-signal-safe. */
#ifndef PMIRROR_H
#define PMIRROR_H

#include <stddef.h> /* NOLINT: a C header */
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* NVM.PM.FILE.MAP: maps `length` bytes of the open file from `offset` (page aligned), shared, for reading,
 * and for writing when `writable`. Null with errno as mmap(2). Unmap with munmap(2). */
void* pmirror_map(int fd, size_t length, off_t offset, int writable);

/* NVM.PM.FILE.SYNC: every store to [address, address + length) before the call, by any process of the node,
 * is durable here and on every in-sync replica. `address` need not be page aligned. 0, or -1 with errno as
 * msync(2). */
int pmirror_sync(const void* address, size_t length);

struct pmirror_range { /* NOLINT: C naming */
  const void* address;
  size_t length; /* bytes */
};

/* NVM.PM.FILE.OPTIMIZED_FLUSH: the same for the bytes of the listed ranges, together: about one round trip
 * for all of them. The ranges may overlap, be in any order, and lie in different files. 0, or -1 with errno:
 * EINVAL, a range is not mapped from a replicated file (nothing was flushed); EIO or ENOSPC, at least one
 * range may not be durable on a replica. */
int pmirror_flush(const struct pmirror_range* ranges, size_t count);

/* NVM.PM.FILE.GET_ERROR_INFO: what the calling thread's last failed sync or flush of any kind failed with:
 * errno (0: none failed yet) and what was being done, a text that stays valid. `what` may be null. */
int pmirror_error(const char** what);

/* Whether a range lies in mappings that the preload library replicates. */
int pmirror_is_replicated(const void* address, size_t length);

#ifdef __cplusplus
}
#endif

#endif
