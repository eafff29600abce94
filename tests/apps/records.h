/* SPDX-License-Identifier: BSD-3-Clause */
/* What the example programs have in common: bytes that follow from a commit's number, acknowledgements, and
 * failing.
 *
 * Every program is called in one of two ways:
 *   PROGRAM write [OPTIONS] FILE     commits 1, 2, 3 ... or goes on after the last commit that FILE holds
 *   PROGRAM check FILE N [N ...]     exit 0 when FILE holds every commit up to N, whole; 1 and the reason on
 * stderr when not; 2 wrong usage `write` prints a commit's number only after the call that commits it has
 * returned, one write(2) a line, so that who reads the lines knows what was acknowledged whatever kills the
 * program. Programs with several writers print "WRITER NUMBER", the others "NUMBER". They know nothing of
 * pmirror.
 */
#pragma once

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { kExitWrong = 1, kExitUsage = 2 };

/* Prints "PROGRAM: text" and, where errno is given, its meaning; exits 1. */
static inline void __attribute__((noreturn, format(printf, 2, 3))) Fail(int error, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, error != 0 ? ": %s\n" : "\n", strerror(error));
  exit(kExitWrong);
}

/* The word at place `index` of what `writer` commits as `number`. Never 0 in practice; differs for each of
 * the three. */
static inline uint64_t WordOf(uint64_t writer, uint64_t number, uint64_t index) {
  uint64_t x = number * 0x9e3779b97f4a7c15u + index * 0xd1b54a32d192ed03u + writer * 0x8cb92ba72f3d8dd7u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/* Bodies of different sizes for the databases: at most kMaxBodyBytes, some of them longer than a page. */
enum { kMaxBodyBytes = 6000 };
static inline size_t BodyBytes(uint64_t number) {
  return 64 + WordOf(0, number, 0) % (number % 16 == 0 ? 5900 : 900);
}

/* Fills `body` (of kMaxBodyBytes) with what commit `number` stores; returns its length. */
static inline size_t FillBody(uint64_t number, unsigned char* body) {
  const size_t bytes = BodyBytes(number);
  for (size_t i = 0; i < bytes; i++) body[i] = (unsigned char)(WordOf(1, number, i / 8) >> (i % 8 * 8));
  return bytes;
}

static inline int IsBodyOf(uint64_t number, const void* body, size_t bytes) {
  unsigned char expected[kMaxBodyBytes];
  return bytes == FillBody(number, expected) && memcmp(body, expected, bytes) == 0;
}

/* The databases keep their last kRing commits: commit n is in slot n % kRing. */
enum { kRing = 1000 };
/* The commit that slot holds when `last` is the newest; 0 when it is still empty. */
static inline uint64_t NumberInSlot(uint64_t slot, uint64_t last) {
  const uint64_t back = (last % kRing + kRing - slot) % kRing;
  return back < last ? last - back : 0;
}

static inline void PrintLine(const char* line, int length) {
  if (write(STDOUT_FILENO, line, (size_t)length) != length) exit(kExitWrong); /* nobody listens any more */
}

static inline void Acknowledge(uint64_t number) {
  char line[32];
  PrintLine(line, snprintf(line, sizeof line, "%llu\n", (unsigned long long)number));
}

static inline void AcknowledgeAs(unsigned writer, uint64_t number) {
  char line[48];
  PrintLine(line, snprintf(line, sizeof line, "%u %llu\n", writer, (unsigned long long)number));
}

static inline uint64_t ParseNumber(const char* text) {
  char* end = NULL;
  errno = 0;
  const unsigned long long number = strtoull(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0') {
    fprintf(stderr, "'%s' is not a number\n", text);
    exit(kExitUsage);
  }
  return number;
}

/* What a checker says at its end, for people: the newest commit that it found. */
static inline void ReportFound(uint64_t last) {
  printf("holds every commit up to %llu\n", (unsigned long long)last);
}
