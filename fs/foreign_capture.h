// SPDX-License-Identifier: BSD-3-Clause
// What the registered programs have stored to one volume's files and not brought over (docs/internals/capture-order.md, R4), found in their page
// tables and their ticket tables without their help: they may be stopped or dying.
//
// Threads: any, also with the volume's lock of a file held; takes only leaf locks of the registry (client_process.h) and drops no lease.
// ---
// For maintainers. What a program hands over (kUnmapped, its end) goes to the volume *before* it goes from here. So whoever wants all that is dirty asks
// here first and looks at what the volume holds afterwards.
#pragma once

#include "fs/client_table.h"
#include "fs/foreign_stores.h"

namespace pmirror::fs {

class ForeignCapture : public ForeignStores {
 public:
  // `volume`: index of the volume in the programs' tickets and mappings. The table must outlive this.
  ForeignCapture(const ClientTable& processes, size_t volume) : processes_(processes), volume_(volume) {}

  void Take(FileId file, Extent range, ProcessSerial except, ExtentSet& dirty) override;
  bool Any(FileId file, Extent range) override;
  uint64_t Syncs() const override { return processes_.AcknowledgedSyncs(volume_); }

 private:
  const ClientTable& processes_;
  const size_t volume_;
};

// Adds what `process` has in tickets of the file, not clipped; when its tickets cannot be read, or it has given up on them, `unknown`.
void AddTickets(const ClientProcess& process, const FileKey& key, Extent unknown, ExtentSet& dirty);

}  // namespace pmirror::fs
