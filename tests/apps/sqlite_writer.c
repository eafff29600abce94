/* SPDX-License-Identifier: BSD-3-Clause */
/* Commits transactions to an SQLite database in WAL mode with synchronous=FULL and mmap_size set, so that it
 * reads through a mapping and shares its WAL index through another. sqlite_writer write [--count N] FILE
 * sqlite_writer check FILE N A commit stores its body in the slot of its number and its number in a second
 * table, so that half a transaction is seen. `check` recovers the WAL as any program would: give it a copy
 * when FILE must stay as it is.
 */
#include <getopt.h>
#include <sqlite3.h>

#include "tests/apps/records.h"

static void Require(sqlite3* database, int result, int wanted, const char* doing) {
  if (result != wanted) {
    fprintf(stderr, "%s: %s\n", doing, sqlite3_errmsg(database));
    exit(kExitWrong);
  }
}

static void Execute(sqlite3* database, const char* sql) {
  Require(database, sqlite3_exec(database, sql, NULL, NULL, NULL), SQLITE_OK, sql);
}

static sqlite3_stmt* Prepare(sqlite3* database, const char* sql) {
  sqlite3_stmt* statement = NULL;
  Require(database, sqlite3_prepare_v2(database, sql, -1, &statement, NULL), SQLITE_OK, sql);
  return statement;
}

static sqlite3* Open(const char* path, int flags) {
  sqlite3* database = NULL;
  Require(database, sqlite3_open_v2(path, &database, flags, NULL), SQLITE_OK, path);
  sqlite3_busy_timeout(database, 10000);
  Execute(database, "PRAGMA mmap_size=268435456; PRAGMA synchronous=FULL;");
  return database;
}

static uint64_t ReadLast(sqlite3* database) {
  sqlite3_stmt* statement = Prepare(database, "SELECT number FROM last");
  Require(database, sqlite3_step(statement), SQLITE_ROW, "read last");
  const uint64_t last = (uint64_t)sqlite3_column_int64(statement, 0);
  sqlite3_finalize(statement);
  return last;
}

static void RunOnce(sqlite3* database, sqlite3_stmt* statement, const char* doing) {
  Require(database, sqlite3_step(statement), SQLITE_DONE, doing);
  sqlite3_reset(statement);
}

static int Write(int argc, char** argv) {
  static const struct option kOptions[] = {{"count", required_argument, NULL, 'c'}, {0}};
  uint64_t count = UINT64_MAX;
  for (int option; (option = getopt_long(argc, argv, "", kOptions, NULL)) != -1;) {
    if (option == 'c') count = ParseNumber(optarg);
    if (option == '?') return kExitUsage;
  }
  if (optind + 1 != argc) return kExitUsage;
  sqlite3* database = Open(argv[optind], SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
  Execute(database,
          "PRAGMA journal_mode=WAL; BEGIN IMMEDIATE;"
          "CREATE TABLE IF NOT EXISTS ring(slot INTEGER PRIMARY KEY, body BLOB);"
          "CREATE TABLE IF NOT EXISTS last(one INTEGER PRIMARY KEY, number INTEGER);"
          "INSERT OR IGNORE INTO last VALUES(1, 0); COMMIT;");
  sqlite3_stmt* put = Prepare(database, "INSERT OR REPLACE INTO ring VALUES(?1, ?2)");
  sqlite3_stmt* set_last = Prepare(database, "UPDATE last SET number = ?1");
  const uint64_t first = ReadLast(database) + 1;
  for (uint64_t i = 0; i < count; i++) {
    const uint64_t number = first + i;
    unsigned char body[kMaxBodyBytes];
    const size_t bytes = FillBody(number, body);
    Execute(database, "BEGIN IMMEDIATE");
    sqlite3_bind_int64(put, 1, (sqlite3_int64)(number % kRing));
    sqlite3_bind_blob(put, 2, body, (int)bytes, SQLITE_STATIC);
    RunOnce(database, put, "put");
    sqlite3_bind_int64(set_last, 1, (sqlite3_int64)number);
    RunOnce(database, set_last, "set last");
    Execute(database, "COMMIT");
    Acknowledge(number);
  }
  sqlite3_finalize(put);
  sqlite3_finalize(set_last);
  Require(database, sqlite3_close(database), SQLITE_OK, "close");
  return 0;
}

static void CheckIntegrity(sqlite3* database) {
  sqlite3_stmt* statement = Prepare(database, "PRAGMA integrity_check");
  Require(database, sqlite3_step(statement), SQLITE_ROW, "integrity_check");
  const char* answer = (const char*)sqlite3_column_text(statement, 0);
  if (strcmp(answer, "ok") != 0) Fail(0, "integrity_check: %s", answer);
  sqlite3_finalize(statement);
}

static void CheckRing(sqlite3* database, uint64_t last) {
  sqlite3_stmt* statement = Prepare(database, "SELECT body FROM ring WHERE slot = ?1");
  for (uint64_t slot = 0; slot < kRing; slot++) {
    const uint64_t number = NumberInSlot(slot, last);
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)slot);
    const int result = sqlite3_step(statement);
    const int is_right = number == 0
                             ? result == SQLITE_DONE
                             : result == SQLITE_ROW && IsBodyOf(number, sqlite3_column_blob(statement, 0),
                                                                (size_t)sqlite3_column_bytes(statement, 0));
    if (!is_right)
      Fail(0, "slot %llu does not hold commit %llu", (unsigned long long)slot, (unsigned long long)number);
    sqlite3_reset(statement);
  }
  sqlite3_finalize(statement);
}

static int Check(int argc, char** argv) {
  if (argc != 3) return kExitUsage;
  const uint64_t acknowledged = ParseNumber(argv[2]);
  sqlite3* database = Open(argv[1], SQLITE_OPEN_READWRITE);
  CheckIntegrity(database);
  const uint64_t last = ReadLast(database);
  if (last < acknowledged)
    Fail(0, "commit %llu was acknowledged, but the last one is %llu", (unsigned long long)acknowledged,
         (unsigned long long)last);
  CheckRing(database, last);
  Require(database, sqlite3_close(database), SQLITE_OK, "close");
  ReportFound(last);
  return 0;
}

int main(int argc, char** argv) {
  int result = kExitUsage;
  if (argc > 1 && strcmp(argv[1], "write") == 0) result = Write(argc - 1, argv + 1);
  if (argc > 1 && strcmp(argv[1], "check") == 0) result = Check(argc - 1, argv + 1);
  if (result == kExitUsage) fputs("usage: sqlite_writer write [--count N] FILE | check FILE N\n", stderr);
  return result;
}
