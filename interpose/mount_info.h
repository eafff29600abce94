// SPDX-License-Identifier: BSD-3-Clause
// Finds the local daemon's socket among the mounts of this process: file system type fuse.pmirror, source
// "pmirror:<path>". No allocation.
#pragma once

#include <cstddef>

namespace pmirror::interpose {

// Copies the first socket path of `mountinfo` (text in the format of /proc/self/mountinfo) to `path`.
// `several` says that another mount names another socket. False: none, or it does not fit.
bool FindSocketInMountInfo(const char* mountinfo, char* path, size_t room, bool& several);

}  // namespace pmirror::interpose
