/* SPDX-License-Identifier: BSD-3-Clause */
/* Commits transactions to an LMDB environment (one file, FILE, and its lock file). --writemap: LMDB stores
 * through its mapping and syncs with msync; without: it writes and uses the mapping to read. lmdb_writer
 * write [--writemap] [--count N] [--map-mib N] FILE      lmdb_writer check FILE N A commit stores its body in
 * the slot of its number and its number under "last", so that half a transaction is seen.
 */
#include <getopt.h>
#include <lmdb.h>

#include "tests/apps/records.h"

static void Require(int result, const char* doing) {
  if (result != 0) {
    fprintf(stderr, "%s: %s\n", doing, mdb_strerror(result));
    exit(kExitWrong);
  }
}

static MDB_env* OpenEnvironment(const char* path, unsigned flags, size_t map_bytes) {
  MDB_env* env = NULL;
  Require(mdb_env_create(&env), "mdb_env_create");
  if (map_bytes != 0) Require(mdb_env_set_mapsize(env, map_bytes), "mdb_env_set_mapsize");
  Require(mdb_env_open(env, path, MDB_NOSUBDIR | flags, 0644), path);
  return env;
}

static MDB_val KeyOf(uint64_t* slot) { return (MDB_val){sizeof *slot, slot}; }
static MDB_val LastKey(void) { return (MDB_val){4, (void*)"last"}; }

static uint64_t ReadLast(MDB_txn* transaction, MDB_dbi table) {
  MDB_val key = LastKey();
  MDB_val value;
  uint64_t last = 0;
  const int result = mdb_get(transaction, table, &key, &value);
  if (result == MDB_NOTFOUND) return 0;
  Require(result, "mdb_get last");
  if (value.mv_size != sizeof last) Fail(0, "\"last\" is damaged");
  memcpy(&last, value.mv_data, sizeof last);
  return last;
}

/* Commits the number after the last; returns it. */
static uint64_t CommitNext(MDB_env* env) {
  MDB_txn* transaction = NULL;
  MDB_dbi table = 0;
  Require(mdb_txn_begin(env, NULL, 0, &transaction), "mdb_txn_begin");
  Require(mdb_dbi_open(transaction, NULL, 0, &table), "mdb_dbi_open");
  uint64_t number = ReadLast(transaction, table) + 1;
  uint64_t slot = number % kRing;
  unsigned char body[kMaxBodyBytes];
  MDB_val value = {FillBody(number, body), body};
  MDB_val key = KeyOf(&slot);
  Require(mdb_put(transaction, table, &key, &value, 0), "mdb_put");
  key = LastKey();
  value = (MDB_val){sizeof number, &number};
  Require(mdb_put(transaction, table, &key, &value, 0), "mdb_put last");
  Require(mdb_txn_commit(transaction), "mdb_txn_commit");
  return number;
}

static int Write(int argc, char** argv) {
  static const struct option kOptions[] = {{"writemap", no_argument, NULL, 'w'},
                                           {"count", required_argument, NULL, 'c'},
                                           {"map-mib", required_argument, NULL, 'm'},
                                           {0}};
  unsigned flags = 0;
  uint64_t count = UINT64_MAX;
  size_t map_mib = 64;
  for (int option; (option = getopt_long(argc, argv, "", kOptions, NULL)) != -1;) {
    if (option == 'w') flags |= MDB_WRITEMAP;
    if (option == 'c') count = ParseNumber(optarg);
    if (option == 'm') map_mib = ParseNumber(optarg);
    if (option == '?') return kExitUsage;
  }
  if (optind + 1 != argc) return kExitUsage;
  MDB_env* env = OpenEnvironment(argv[optind], flags, map_mib << 20);
  for (uint64_t i = 0; i < count; i++) Acknowledge(CommitNext(env));
  mdb_env_close(env);
  return 0;
}

static void CheckSlot(MDB_txn* transaction, MDB_dbi table, uint64_t slot, uint64_t number) {
  MDB_val key = KeyOf(&slot);
  MDB_val value;
  const int result = mdb_get(transaction, table, &key, &value);
  if (number == 0 && result == MDB_NOTFOUND) return;
  Require(result, "mdb_get");
  if (number == 0 || !IsBodyOf(number, value.mv_data, value.mv_size))
    Fail(0, "slot %llu does not hold commit %llu", (unsigned long long)slot, (unsigned long long)number);
}

static int Check(int argc, char** argv) {
  if (argc != 3) return kExitUsage;
  const uint64_t acknowledged = ParseNumber(argv[2]);
  MDB_env* env = OpenEnvironment(argv[1], MDB_RDONLY | MDB_NOLOCK, 0);
  MDB_txn* transaction = NULL;
  MDB_dbi table = 0;
  Require(mdb_txn_begin(env, NULL, MDB_RDONLY, &transaction), "mdb_txn_begin");
  Require(mdb_dbi_open(transaction, NULL, 0, &table), "mdb_dbi_open");
  const uint64_t last = ReadLast(transaction, table);
  if (last < acknowledged)
    Fail(0, "commit %llu was acknowledged, but the last one is %llu", (unsigned long long)acknowledged,
         (unsigned long long)last);
  for (uint64_t slot = 0; slot < kRing; slot++) CheckSlot(transaction, table, slot, NumberInSlot(slot, last));
  mdb_txn_abort(transaction);
  mdb_env_close(env);
  ReportFound(last);
  return 0;
}

int main(int argc, char** argv) {
  int result = kExitUsage;
  if (argc > 1 && strcmp(argv[1], "write") == 0) result = Write(argc - 1, argv + 1);
  if (argc > 1 && strcmp(argv[1], "check") == 0) result = Check(argc - 1, argv + 1);
  if (result == kExitUsage)
    fputs("usage: lmdb_writer write [--writemap] [--count N] [--map-mib N] FILE | check FILE N\n", stderr);
  return result;
}
