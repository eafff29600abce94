// SPDX-License-Identifier: BSD-3-Clause
// Persistence domains of a node: what makes bytes of a backing directory durable.
#pragma once

#include <cstdint>

namespace pmirror {

enum class Domain : uint32_t {
  kVolatile = 1,  // declared by the owner (tests, tmpfs): nothing survives a power cut, nothing is flushed
  kFile = 2,      // fdatasync of the file, syncfs for the tree
  kPmem = 3,      // DAX mapping with MAP_SYNC: CPU cache flush and fence
};

}  // namespace pmirror
