/* SPDX-License-Identifier: BSD-3-Clause */
/* libpmirror: for programs that know that their files are replicated. Names follow the actions and attributes of
 * SNIA's NVM.PM.FILE mode; libpmirror(7) has the table. Nearly everything works without the preload library too,
 * then through msync(2) on the mount: slower, same promises. What does not says so.
 *
 * All functions are thread-safe. pmirror_flush, pmirror_sync, pmirror_error, pmirror_get_error_info and
 * pmirror_is_replicated are async-signal-safe; the others are not. Functions that fail return -1 (or NULL) and set
 * errno; out-parameters are unchanged then unless said otherwise. Lengths and offsets are bytes.
 *
 * Structures that the library fills begin with `size`: the caller sets it to sizeof of what it was compiled with,
 * the library writes no further, and sets it to what it has filled. So old programs run with a new library, and
 * new ones with an old library find in `size` what they got. A `size` that does not reach past the structure's
 * first two members is EINVAL. */
#ifndef PMIRROR_H
#define PMIRROR_H

/* NOLINTBEGIN: a C header, with C's names */
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PMIRROR_NAME_BYTES 64 /* of a volume or node, with its NUL; longer ones are cut */
#define PMIRROR_TEXT_BYTES 160

/* ---- mapping, sync, optimized flush ---- */

/* NVM.PM.FILE.MAP: maps `length` bytes of the open file from `offset` (page aligned), shared, for reading,
 * and for writing when `writable`. Null with errno as mmap(2). Unmap with munmap(2). */
void* pmirror_map(int fd, size_t length, off_t offset, int writable);

/* NVM.PM.FILE.SYNC: every store to [address, address + length) before the call, by any process of the node,
 * is durable here and on every in-sync replica. `address` need not be page aligned. 0, or -1 with errno as
 * msync(2). */
int pmirror_sync(const void* address, size_t length);

struct pmirror_range {
  const void* address;
  size_t length; /* bytes */
};

/* NVM.PM.FILE.OPTIMIZED_FLUSH: the same for the bytes of the listed ranges, together: about one round trip
 * for all of them. The ranges may overlap, be in any order, and lie in different files. Neither all-or-nothing nor
 * ordered: after a failure each of them may or may not be on a replica. 0, or -1 with errno: EINVAL, a range is not
 * mapped from a replicated file (nothing was flushed); EIO, ENOSPC or EDQUOT, at least one range may not be durable on a
 * replica. */
int pmirror_flush(const struct pmirror_range* ranges, size_t count);

/* NVM.PM.FILE.OPTIMIZED_FLUSH_AND_VERIFY: pmirror_flush; then every in-sync replica reads the ranges back from its
 * file and answers with their checksum (CRC32C), which is compared with that of the bytes that were flushed. Stores
 * and syncs of others meanwhile give no false alarm: the comparison is made again when something newer has arrived.
 * What success proves: the replica's file held these bytes when it was read, after the replica had made them durable
 * and asked its system to drop them from memory. On persistent memory that is the medium; on a disk what the disk
 * (its cache included) returns; on tmpfs only memory. Nothing is said of the local copy.
 * 0, or -1 with errno: as pmirror_flush (the flush failed); EILSEQ, a replica holds other bytes: pmirror_get_error_info
 * names range and replica; EIO, also when the replica could not read the range; EAGAIN, the ranges were flushed, but
 * newer captures landed faster than they could be compared, or the connection kept breaking; EHOSTDOWN, they were flushed, but no replica is in sync
 * (policy `proceed`, or replicas that trail); ENOTSUP, without the preload library (nothing was flushed). */
int pmirror_flush_verify(const struct pmirror_range* ranges, size_t count);

/* A flush group: pmirror_flush of ranges of one file that a replica has all of, or nothing of, whatever fails while the
 * flush is under way, this node and the replica together included. It is the flush that is atomic, not the stores: bytes that
 * another sync names meanwhile, or that the end of the process leaves dirty, travel by themselves, so a program keeps others
 * from syncing them until it returns. Nothing is said of the local copy. A replica waits for its disk three times more.
 * 0, or -1 with errno: as pmirror_flush; EXDEV, the ranges lie in several files; E2BIG, more than 64 ranges or
 * `group_atomicity` bytes; ENOTSUP, without the preload library. Nothing was flushed in these three. */
int pmirror_flush_atomic(const struct pmirror_range* ranges, size_t count);

/* Whether a range lies in mappings that the preload library replicates. */
int pmirror_is_replicated(const void* address, size_t length);

/* ---- asynchronous flush ---- */

#define PMIRROR_VERIFY 1u /* as pmirror_flush_verify */
#define PMIRROR_ATOMIC 2u /* as pmirror_flush_atomic; not together with PMIRROR_VERIFY */

struct pmirror_error_info;
/* One asynchronous flush; the caller's until pmirror_completion_release. */
struct pmirror_completion;

/* Begins a flush and returns. The list is copied; the memory of the ranges must stay mapped until the completion.
 * A thread of the library carries it out (the first call starts it): the bytes are copied at some time between this call
 * and the completion, so the flush covers every store before the call, and perhaps later ones. They stay dirty until
 * they are acknowledged: a sync or flush in between sends them itself. They complete in any order; those that wait together may
 * travel together, and then fail together. Null with errno: EINVAL, an empty list or one of more than
 * 1024 ranges, unknown flags, or (preloaded) a range that is not replicated; EAGAIN,
 * PMIRROR_MAX_IN_FLIGHT are under way: wait for one; ENOTSUP, a flag that is not supported here; ENOMEM.
 * After fork(2) the child has none of its parent's flushes: its handles answer ECANCELED and may be released. */
struct pmirror_completion* pmirror_flush_async(const struct pmirror_range* ranges, size_t count,
                                               unsigned flags);
#define PMIRROR_MAX_IN_FLIGHT 4096 /* asynchronous flushes of a process that are not released */

/* Whether it is complete: 1, with its result in `*error` (0, or the errno that pmirror_flush would have given); 0, it
 * is not. `error` may be null. */
int pmirror_completion_done(struct pmirror_completion* completion, int* error);
/* Waits at most `timeout_ms` (negative: for ever) until it is complete, then as pmirror_completion_done. */
int pmirror_completion_wait(struct pmirror_completion* completion, int timeout_ms, int* error);
/* A descriptor that poll(2), select(2) and epoll(7) report readable once the flush is complete. The library's: do
 * not read, close or duplicate over it; it goes with the completion. Made by the first call. -1 with errno: EMFILE,
 * ENFILE, ENOMEM. */
int pmirror_completion_fd(struct pmirror_completion* completion);
/* What it failed with, as pmirror_get_error_info. -1 with errno: EAGAIN, it is not complete; EINVAL, `info->size` is too
 * small. */
int pmirror_completion_error_info(struct pmirror_completion* completion, struct pmirror_error_info* info);
/* Gives the handle back. A flush that is under way is still carried out; nobody learns of its result then. */
void pmirror_completion_release(struct pmirror_completion* completion);

/* ---- errors ---- */

/* What a failure was met in. */
enum pmirror_action {
  PMIRROR_ACTION_NONE = 0,
  PMIRROR_ACTION_SYNC = 1,  /* msync, fsync and their kin, pmirror_sync */
  PMIRROR_ACTION_FLUSH = 2, /* pmirror_flush, and libpmem's flush, drain and persist */
  PMIRROR_ACTION_FLUSH_VERIFY = 3
};

struct pmirror_error_info {
  size_t size;
  int error;                  /* errno of the failure itself; 0: nothing has failed in this thread yet */
  int action;                 /* enum pmirror_action */
  struct pmirror_range range; /* the mapped range in error; address null: not known */
  uint64_t file;              /* inode number (st_ino) of its file; 0: not known */
  uint64_t offset;            /* of range in the file */
  int replica;                /* index of the replica in error; -1: none in particular, or not known */
  char replica_node[PMIRROR_NAME_BYTES]; /* its node; empty when replica is -1 */
  char text[PMIRROR_TEXT_BYTES];         /* what was being done, for people */
};

/* NVM.PM.FILE.GET_ERROR_EVENT_INFO (GET_ERROR_INFO): what the calling thread's last failed sync or flush of any kind
 * failed with. A success does not clear it. 0; -1 with EINVAL: `info->size` is too small. */
int pmirror_get_error_info(struct pmirror_error_info* info);

/* The short form: errno (0: none failed yet) and what was being done, a text that stays valid. `what` may be null. */
int pmirror_error(const char** what);

/* ---- attributes ---- */

/* pmirror_attributes::capabilities */
#define PMIRROR_CAN_FLUSH 1u        /* OPTIMIZED_FLUSH_CAPABLE: without it pmirror_flush syncs whole pages */
#define PMIRROR_CAN_VERIFY 2u       /* OPTIMIZED_FLUSH_AND_VERIFY_CAPABLE */
#define PMIRROR_CAN_FLUSH_ASYNC 4u  /* pmirror_flush_async */
#define PMIRROR_CAN_FLUSH_ATOMIC 8u /* pmirror_flush_atomic */
#define PMIRROR_CAN_SUBSCRIBE 16u   /* pmirror_subscribe */
#define PMIRROR_CAN_COPY_ON_WRITE 32u /* MAP_COPY_ON_WRITE_CAPABLE: MAP_PRIVATE mappings work */
#define PMIRROR_CAN_ERROR_EVENT 64u   /* ERROR_EVENT_CAPABLE: media errors are told; never set yet */

/* How a volume is. */
enum pmirror_state {
  PMIRROR_IN_SYNC = 1,  /* every replica that has once been whole is in the in-sync set */
  PMIRROR_DEGRADED = 2, /* some are missing: what a sync does then is the policy's matter */
  PMIRROR_ALONE = 3,    /* all are */
  PMIRROR_FENCED = 4,   /* another node is or may be primary: every sync fails */
  PMIRROR_CLOSING = 5,  /* the daemon is leaving, or has left */
  PMIRROR_UNPROVEN = 6, /* all are members, but one's copy is still being compared after a crash */
  PMIRROR_TRAILING = 7  /* those that are no members trail them, within their RPO (RPO > 0) */
};

/* What a sync does when a replica stays silent, as `on_loss` of pmirrord.toml; and what makes bytes durable here. */
enum pmirror_policy { PMIRROR_SUSPEND = 1, PMIRROR_FAIL = 2, PMIRROR_PROCEED = 3 };
enum pmirror_domain { PMIRROR_VOLATILE = 1, PMIRROR_FILE = 2, PMIRROR_PMEM = 3 };

struct pmirror_attributes {
  size_t size;
  uint32_t capabilities; /* PMIRROR_CAN_* */
  uint32_t preloaded;    /* 1: the preload library carries it; 0: the mount does */

  /* INTERRUPTED_STORE_ATOMICITY. The largest aligned store, in bytes, that is whole or absent after the failure;
   * 0: nothing is guaranteed. */
  uint32_t store_atomicity_local;        /* in the local copy, after a power cut here: 8 preloaded on pmem */
  uint32_t store_atomicity_remote;       /* in the promoted copy, after the loss of this node: 8 preloaded */
  uint32_t store_atomicity_remote_power; /* the same when the replica loses its power too: 0 */
  uint32_t group_atomicity;              /* bytes that one flush group may have: 16384 preloaded */

  /* Bytes. What a flush makes durable here around what it names: 64 preloaded on pmem, else 4096; what it sends: 8
   * preloaded, else 4096. */
  uint32_t flush_granularity;
  uint32_t remote_granularity;
  /* FUNDAMENTAL_ERROR_RANGE, what a media error takes at once: 4096 bytes, at multiples of that in the file from
   * FUNDAMENTAL_ERROR_RANGE_OFFSET: 0. */
  uint32_t fundamental_error_range;
  uint32_t fundamental_error_range_offset;

  uint32_t domain;      /* enum pmirror_domain, of this node */
  uint32_t state;       /* enum pmirror_state */
  uint32_t policy;      /* enum pmirror_policy */
  uint32_t replicas;    /* configured */
  uint32_t members;     /* bit a replica: in the in-sync set */
  uint32_t joiners;     /* bit a replica: being brought to it */
  uint32_t trailing;    /* bit a replica: trails, within its RPO */
  uint32_t reserved;    /* 0 */
  uint64_t set_version; /* of these: grows with each change */
  uint64_t epoch;
  uint64_t deadline_ns; /* a silence that is shorter changes nothing */
  uint64_t suspend_ns;  /* policy suspend: how long a sync waits beyond, then EIO */
  uint64_t file;        /* inode number (st_ino) */
  uint64_t offset;      /* of `address` in the file */
  char volume[PMIRROR_NAME_BYTES];
  char nodes[8][PMIRROR_NAME_BYTES]; /* of the replicas, by index */
};

/* The attributes of the mapping at `address`, now: a state may be another one right after. Costs a system call at most with
 * the preload library, a connection to the local daemon without it. -1 with errno: EINVAL, `out->size` is too small; ENXIO,
 * nothing of a pmirror volume is mapped there; ENOTCONN, the local daemon cannot be asked. */
int pmirror_get_attributes(const void* address, struct pmirror_attributes* out);

/* ---- events ---- */

enum pmirror_event_kind {
  PMIRROR_EVENT_STATE = 1,               /* how a volume is: the first event of each volume */
  PMIRROR_EVENT_REDUNDANCY_LOST = 2,     /* a replica is not in the in-sync set any more, nor trails it */
  PMIRROR_EVENT_REDUNDANCY_RESTORED = 3, /* it is, or trails, again */
  PMIRROR_EVENT_FENCED = 4,              /* another node is or may be primary */
  PMIRROR_EVENT_CLOSING = 5,             /* the daemon leaves the volume */
  PMIRROR_EVENT_LAG =
      6, /* a replica that trails is older than its RPO (its bit is in `lagging`), or not any more */
  PMIRROR_EVENT_MEDIA = 7,      /* reserved: a media error */
  PMIRROR_EVENT_DAEMON_GONE = 8 /* the last one of a subscription: the daemon has ended. Subscribe again */
};

struct pmirror_event {
  size_t size;
  uint32_t kind;     /* enum pmirror_event_kind */
  int32_t replica;   /* index of the replica that it is about; -1: none in particular */
  uint32_t state;    /* enum pmirror_state, after it */
  uint32_t members;  /* bit a replica, after it */
  uint32_t trailing; /* likewise */
  uint32_t lagging;  /* bit a replica that trails and is older than its RPO, after it */
  uint64_t set_version;
  uint64_t time_ns; /* CLOCK_REALTIME of the daemon */
  uint64_t missed;  /* events before this one that were dropped, because they were not taken in time */
  char volume[PMIRROR_NAME_BYTES];
  char replica_node[PMIRROR_NAME_BYTES]; /* empty when replica is -1 */
};

/* The caller's until pmirror_unsubscribe. */
struct pmirror_subscription;

/* Subscribes to the events of one volume by its name, or of all that are mounted on this node (null). The daemon keeps
 * several hundred events for a subscriber that does not take them, then drops the newer ones and counts them. No thread is
 * made. A child of fork(2) must not use its parent's subscriptions. Null with errno: ENOENT, no such volume is mounted;
 * ENOTCONN, the local daemon cannot be reached; EMFILE, ENOMEM. */
struct pmirror_subscription* pmirror_subscribe(const char* volume);
/* Readable (poll(2)) while there is something for pmirror_next_event. The library's, as pmirror_completion_fd. */
int pmirror_subscription_fd(const struct pmirror_subscription* subscription);
/* The next event, without waiting. 1: `*event` holds it; 0: there is none now; -1 with errno: EINVAL, `event->size` is
 * too small; ENOTCONN, the daemon is gone, and PMIRROR_EVENT_DAEMON_GONE has been told; EBADF, the program has closed the
 * descriptor. One thread at a time. */
int pmirror_next_event(struct pmirror_subscription* subscription, struct pmirror_event* event);
void pmirror_unsubscribe(struct pmirror_subscription* subscription);

#ifdef __cplusplus
}
#endif
/* NOLINTEND */

#endif
