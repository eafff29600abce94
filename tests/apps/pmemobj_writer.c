/* SPDX-License-Identifier: BSD-3-Clause */
/* Commits libpmemobj transactions: each allocates an object for its body, links it into the slot of its
 * number, frees the one that was there, and sets `last`: undo log, redo log and allocator are all in play. On
 * tmpfs run it with PMEM_IS_PMEM_FORCE=1. pmemobj_writer write [--count N] FILE      pmemobj_writer check
 * FILE N `check` opens the pool, which recovers it: give it a copy when FILE must stay as it is.
 */
#include <getopt.h>
#include <libpmemobj.h>

#include "tests/apps/records.h"

enum { kTypeBody = 1 };
static const char* const kLayout = "pmirror-apps";
static const size_t kPoolBytes = (size_t)32 << 20;

struct Body {
  uint64_t number;
  uint64_t bytes;
  unsigned char data[];
};

struct Root {
  uint64_t last;
  PMEMoid slots[kRing];
};

static void __attribute__((noreturn)) FailPool(const char* doing) {
  fprintf(stderr, "%s: %s\n", doing, pmemobj_errormsg());
  exit(kExitWrong);
}

static struct Root* RootOf(PMEMobjpool* pool) {
  struct Root* root = (struct Root*)pmemobj_direct(pmemobj_root(pool, sizeof(struct Root)));
  if (root == NULL) FailPool("pmemobj_root");
  return root;
}

static void RequireTransaction(int error) {
  if (error != 0) {
    fprintf(stderr, "transaction: %s\n", pmemobj_errormsg());
    exit(kExitWrong);
  }
}

static void Commit(PMEMobjpool* pool, struct Root* root, uint64_t number) {
  unsigned char bytes[kMaxBodyBytes];
  const size_t length = FillBody(number, bytes);
  PMEMoid* slot = &root->slots[number % kRing];
  RequireTransaction(pmemobj_tx_begin(pool, NULL, TX_PARAM_NONE));
  const PMEMoid object = pmemobj_tx_alloc(sizeof(struct Body) + length, kTypeBody);
  if (OID_IS_NULL(object)) FailPool("pmemobj_tx_alloc");
  struct Body* body = (struct Body*)pmemobj_direct(object);
  body->number = number;
  body->bytes = length;
  memcpy(body->data, bytes, length);
  if (!OID_IS_NULL(*slot)) RequireTransaction(pmemobj_tx_free(*slot));
  RequireTransaction(pmemobj_tx_add_range_direct(slot, sizeof *slot));
  *slot = object;
  RequireTransaction(pmemobj_tx_add_range_direct(&root->last, sizeof root->last));
  root->last = number;
  pmemobj_tx_commit();
  RequireTransaction(pmemobj_tx_end());
}

static int Write(int argc, char** argv) {
  static const struct option kOptions[] = {{"count", required_argument, NULL, 'c'}, {0}};
  uint64_t count = UINT64_MAX;
  for (int option; (option = getopt_long(argc, argv, "", kOptions, NULL)) != -1;) {
    if (option == 'c') count = ParseNumber(optarg);
    if (option == '?') return kExitUsage;
  }
  if (optind + 1 != argc) return kExitUsage;
  const char* path = argv[optind];
  PMEMobjpool* pool =
      access(path, F_OK) == 0 ? pmemobj_open(path, kLayout) : pmemobj_create(path, kLayout, kPoolBytes, 0644);
  if (pool == NULL) FailPool(path);
  struct Root* root = RootOf(pool);
  for (uint64_t i = 0; i < count; i++) {
    Commit(pool, root, root->last + 1);
    Acknowledge(root->last);
  }
  pmemobj_close(pool);
  return 0;
}

static void CheckSlot(const struct Root* root, uint64_t slot) {
  const uint64_t number = NumberInSlot(slot, root->last);
  const PMEMoid object = root->slots[slot];
  int is_right = OID_IS_NULL(object) && number == 0;
  if (!OID_IS_NULL(object)) {
    const struct Body* body = (const struct Body*)pmemobj_direct(object);
    is_right =
        body != NULL && number != 0 && body->number == number && IsBodyOf(number, body->data, body->bytes);
  }
  if (!is_right)
    Fail(0, "slot %llu does not hold commit %llu", (unsigned long long)slot, (unsigned long long)number);
}

static int Check(int argc, char** argv) {
  if (argc != 3) return kExitUsage;
  const uint64_t acknowledged = ParseNumber(argv[2]);
  const int consistent = pmemobj_check(argv[1], kLayout);
  if (consistent != 1)
    FailPool(consistent == 0 ? "pmemobj_check: the pool is not consistent" : "pmemobj_check");
  PMEMobjpool* pool = pmemobj_open(argv[1], kLayout);
  if (pool == NULL) FailPool(argv[1]);
  const struct Root* root = RootOf(pool);
  const uint64_t last = root->last;
  if (last < acknowledged)
    Fail(0, "commit %llu was acknowledged, but the last one is %llu", (unsigned long long)acknowledged,
         (unsigned long long)last);
  for (uint64_t slot = 0; slot < kRing; slot++) CheckSlot(root, slot);
  pmemobj_close(pool);
  ReportFound(last);
  return 0;
}

int main(int argc, char** argv) {
  int result = kExitUsage;
  if (argc > 1 && strcmp(argv[1], "write") == 0) result = Write(argc - 1, argv + 1);
  if (argc > 1 && strcmp(argv[1], "check") == 0) result = Check(argc - 1, argv + 1);
  if (result == kExitUsage) fputs("usage: pmemobj_writer write [--count N] FILE | check FILE N\n", stderr);
  return result;
}
