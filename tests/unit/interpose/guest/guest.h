/* SPDX-License-Identifier: BSD-3-Clause */
/* A program that knows nothing of pmirror; the tests run it under the preload library. Each command is one
 * behaviour: it returns normally when all went as it does on a plain file, and ends the process with a
 * message when it did not. */
#ifndef GUEST_H
#define GUEST_H

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096ul

/* Ends the process with the place and errno when the condition is false. */
#define CHECK(condition)                                                                                     \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      fprintf(stderr, "%s:%d: %s (errno %d: %s)\n", __FILE__, __LINE__, #condition, errno, strerror(errno)); \
      _Exit(99);                                                                                             \
    }                                                                                                        \
  } while (0)

struct command {
  const char* name;
  void (*run)(const char* file);
};
extern const struct command map_commands[], remap_commands[], process_commands[], descriptor_commands[],
    signal_commands[], thread_commands[], pmem_commands[], memory_commands[], api_commands[];

/* Stores a text with its NUL. */
void store_text(char* to, const char* text);

int open_file(const char* path);
/* Maps the whole file, shared, for reading and writing. */
char* map_file(const char* path, size_t* length);

/* Tells the test a word, and waits for a line from it. */
void tell(const char* word);
void wait_for_test(void);

#endif
