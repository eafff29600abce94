// SPDX-License-Identifier: BSD-3-Clause
// Who wants to hear of each change of a volume page (VolumePageOwner::Listen).
#pragma once

#include "replication/volume_page.h"

namespace pmirror::fs {

class PageListener {
 public:
  virtual ~PageListener() = default;
  // How the page is when the listening begins, then each change, in order. Called under the page's lock: quick, and
  // without calls of the page's owner.
  // `lagging`: bit a replica that trails and is older than its RPO.
  virtual void Began(SetWord set, VolumeState state, uint8_t lagging) = 0;
  virtual void SetMoved(SetWord before, SetWord after, VolumeState state) = 0;
  virtual void StateChanged(VolumeState state, SetWord set) = 0;
  // The bit of that replica has changed in `lagging`.
  virtual void LagMoved(size_t replica, uint8_t lagging, VolumeState state, SetWord set) = 0;
};

}  // namespace pmirror::fs
