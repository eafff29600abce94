/* SPDX-License-Identifier: BSD-3-Clause */
/* The file of the programs that store records in place, without a database: one header page, then slots of
 * 256 bytes.
 *
 * Commit n of writer w is in its slot n % slots, at (n % slots) * writers + w: records of different writers
 * lie beside each other, so that syncs of one page by several writers overlap. A record is its number and 31
 * words that follow from it (WordOf). A writer has at most one record in flight: after a crash every record
 * up to the newest whole one must be whole, and the slot of the next may hold any mixture of old and new
 * words (or zero: some clear the slot first), but no torn word.
 */
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tests/apps/records.h"

enum { kSlotWords = 32, kSlotBytes = 256, kSlotHeaderBytes = 4096 };
static const uint64_t kSlotMagic = 0x31544f4c53504d50u;

struct SlotHeader {
  uint64_t magic;
  uint64_t writers;
  uint64_t slots; /* of each writer */
};

struct SlotFile {
  struct SlotHeader* header; /* the start of the mapping */
  size_t bytes;              /* of file and mapping */
  int fd;
};

static inline uint64_t* SlotOf(const struct SlotFile* file, unsigned writer, uint64_t number) {
  const uint64_t index = number % file->header->slots * file->header->writers + writer;
  return (uint64_t*)(void*)((char*)file->header + kSlotHeaderBytes + index * kSlotBytes);
}

static inline void FillRecord(unsigned writer, uint64_t number, uint64_t record[kSlotWords]) {
  record[0] = number;
  for (uint64_t i = 1; i < kSlotWords; i++) record[i] = WordOf(writer, number, i);
}

/* Word by word: aligned stores of 8 bytes, which nothing may tear. */
static inline void StoreRecord(volatile uint64_t* slot, const uint64_t record[kSlotWords]) {
  for (int i = 0; i < kSlotWords; i++) slot[i] = record[i];
}

static inline int IsWhole(unsigned writer, const uint64_t* slot) {
  uint64_t expected[kSlotWords];
  FillRecord(writer, slot[0], expected);
  return slot[0] != 0 && memcmp(slot, expected, kSlotBytes) == 0;
}

/* The newest whole record of a writer, 0 when there is none. */
static inline uint64_t LastWhole(const struct SlotFile* file, unsigned writer) {
  uint64_t last = 0;
  for (uint64_t i = 0; i < file->header->slots; i++) {
    const uint64_t* slot = SlotOf(file, writer, i);
    if (slot[0] > last && slot[0] % file->header->slots == i && IsWhole(writer, slot)) last = slot[0];
  }
  return last;
}

static inline void WriteAll(int fd, const void* bytes, size_t length, off_t offset) {
  if (pwrite(fd, bytes, length, offset) != (ssize_t)length) Fail(errno, "pwrite");
}

/* Opens `path`; creates it durably when it is not there. */
static inline int OpenSlots(const char* path, uint64_t writers, uint64_t slots) {
  const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) Fail(errno, "open %s", path);
  struct stat status;
  if (fstat(fd, &status) != 0) Fail(errno, "stat %s", path);
  if (status.st_size == 0) {
    const struct SlotHeader header = {kSlotMagic, writers, slots};
    if (ftruncate(fd, (off_t)(kSlotHeaderBytes + writers * slots * kSlotBytes)) != 0)
      Fail(errno, "ftruncate");
    WriteAll(fd, &header, sizeof header, 0);
    if (fsync(fd) != 0) Fail(errno, "fsync %s", path);
  }
  return fd;
}

/* Checks the header that `file->header` points to. Requires: `file->bytes` is the size of the file. */
static inline void RequireSlotHeader(const struct SlotFile* file, const char* path) {
  const struct SlotHeader* header = file->header;
  if (file->bytes < kSlotHeaderBytes || header->magic != kSlotMagic || header->writers == 0 ||
      header->slots < 2 || file->bytes != kSlotHeaderBytes + header->writers * header->slots * kSlotBytes)
    Fail(0, "%s is no file of slots", path);
}

static inline struct SlotFile MapSlots(int fd, int protection, const char* path) {
  struct SlotFile file = {NULL, 0, fd};
  struct stat status;
  if (fstat(fd, &status) != 0) Fail(errno, "stat %s", path);
  file.bytes = (size_t)status.st_size;
  if (file.bytes == 0) Fail(0, "%s is empty", path);
  void* at = mmap(NULL, file.bytes, protection, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) Fail(errno, "mmap %s", path);
  file.header = (struct SlotHeader*)at;
  RequireSlotHeader(&file, path);
  return file;
}

/* The slot of the record in flight: each word is the old one, the new one, or still 0. */
static inline int HasOnlyWholeWords(const struct SlotFile* file, unsigned writer, uint64_t number) {
  const uint64_t* slot = SlotOf(file, writer, number);
  const uint64_t old = number > file->header->slots ? number - file->header->slots : 0;
  uint64_t newer[kSlotWords];
  uint64_t older[kSlotWords] = {0};
  FillRecord(writer, number, newer);
  if (old != 0) FillRecord(writer, old, older);
  for (int i = 0; i < kSlotWords; i++)
    if (slot[i] != newer[i] && slot[i] != older[i] && slot[i] != 0) return 0;
  return 1;
}

static inline void CheckWriter(const struct SlotFile* file, unsigned writer, uint64_t acknowledged) {
  const uint64_t slots = file->header->slots;
  const uint64_t last = LastWhole(file, writer);
  if (last < acknowledged)
    Fail(0, "writer %u: commit %llu was acknowledged, but the newest whole one is %llu", writer,
         (unsigned long long)acknowledged, (unsigned long long)last);
  for (uint64_t number = last; number > 0 && last - number < slots - 1; number--) {
    const uint64_t* slot = SlotOf(file, writer, number);
    if (slot[0] != number || !IsWhole(writer, slot))
      Fail(0, "writer %u: commit %llu is lost or damaged (%llu is there)", writer, (unsigned long long)number,
           (unsigned long long)slot[0]);
  }
  if (!HasOnlyWholeWords(file, writer, last + 1))
    Fail(0, "writer %u: a word of the record in flight, %llu, is torn", writer, (unsigned long long)last + 1);
}

/* The `check` mode of every program that uses slots: `arguments` are FILE and one number for each writer. */
static inline int CheckSlots(int count, char** arguments) {
  if (count < 2) return kExitUsage;
  const int fd = open(arguments[0], O_RDONLY | O_CLOEXEC);
  if (fd < 0) Fail(errno, "open %s", arguments[0]);
  const struct SlotFile file = MapSlots(fd, PROT_READ, arguments[0]);
  if ((uint64_t)count - 1 != file.header->writers)
    Fail(0, "%s has %llu writers, and %d numbers were given", arguments[0],
         (unsigned long long)file.header->writers, count - 1);
  for (unsigned writer = 0; writer < file.header->writers; writer++) {
    CheckWriter(&file, writer, ParseNumber(arguments[writer + 1]));
    ReportFound(LastWhole(&file, writer));
  }
  return 0;
}
