// SPDX-License-Identifier: BSD-3-Clause
// Where captured bytes come from: ByteSource and DescriptorSource of replicate.h.
#include <sys/syscall.h>
#include <unistd.h>

#include "replication/crc32c.h"
#include "replication/replicate.h"

namespace pmirror {

Result<size_t> ByteSource::CopyWithCrc(Extent extent, std::span<std::byte> out, uint32_t& crc) {
  Result<size_t> copied = Copy(extent, out);
  if (copied.ok()) {
    crc = Crc32c(crc, out.first(copied.value()));
  }
  return copied;
}

Result<size_t> DescriptorSource::Copy(Extent extent, std::span<std::byte> out) {
  size_t done = 0;
  while (done < extent.length) {
    // The system call itself: pread is a cancellation point.
    const long count =
        ::syscall(SYS_pread64, fd_, out.data() + done, extent.length - done, extent.offset + done);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return Error::FromErrno("read the bytes to replicate");
    }
    if (count == 0) {
      break;  // the file ends here
    }
    done += static_cast<size_t>(count);
  }
  return done;
}

}  // namespace pmirror
