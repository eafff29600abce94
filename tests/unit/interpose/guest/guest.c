/* SPDX-License-Identifier: BSD-3-Clause */
/* guest COMMAND FILE: see guest.h. */
#include "tests/unit/interpose/guest/guest.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

void store_text(char* to, const char* text) { memcpy(to, text, strlen(text) + 1); }

int open_file(const char* path) {
  int fd = open(path, O_RDWR | O_CLOEXEC);
  CHECK(fd >= 0);
  return fd;
}

char* map_file(const char* path, size_t* length) {
  struct stat status;
  int fd = open_file(path);
  CHECK(fstat(fd, &status) == 0);
  char* map = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(map != MAP_FAILED);
  CHECK(close(fd) == 0);
  if (length != NULL) *length = (size_t)status.st_size;
  return map;
}

void tell(const char* word) {
  CHECK(write(STDOUT_FILENO, word, strlen(word)) == (ssize_t)strlen(word));
  CHECK(write(STDOUT_FILENO, "\n", 1) == 1);
}

void wait_for_test(void) {
  char c = 0;
  while (c != '\n') CHECK(read(STDIN_FILENO, &c, 1) == 1);
}

int main(int argc, char** argv) {
  const struct command* tables[] = {map_commands,        remap_commands,  process_commands,
                                    descriptor_commands, signal_commands, thread_commands,
                                    pmem_commands,       memory_commands, api_commands};
  if (argc != 3) {
    fprintf(stderr, "usage: guest COMMAND FILE\n");
    return 2;
  }
  for (size_t i = 0; i < sizeof tables / sizeof tables[0]; ++i) {
    for (const struct command* command = tables[i]; command->name != NULL; ++command) {
      if (strcmp(command->name, argv[1]) == 0) {
        command->run(argv[2]);
        return 0;
      }
    }
  }
  fprintf(stderr, "guest: no such command: %s\n", argv[1]);
  return 2;
}
