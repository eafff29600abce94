// SPDX-License-Identifier: BSD-3-Clause
// See volume_section.h.
#include "cli/volume_section.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace pmirror::cli {

std::string Quote(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      quoted += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string QuoteList(const std::vector<std::string>& texts) {
  std::vector<std::string> quoted;
  std::transform(texts.begin(), texts.end(), std::back_inserter(quoted), &Quote);
  return fmt::format("[{}]", fmt::join(quoted, ", "));
}

std::string ToToml(const VolumeSection& volume) {
  std::string text =
      fmt::format("[[volume]]\nname = {}\nuuid = {}\nbacking = {}\nmount = {}\nnodes = {}\nprimary = {}\n",
                  Quote(volume.name), Quote(volume.uuid), Quote(volume.backing), Quote(volume.mount),
                  QuoteList(volume.nodes), Quote(volume.primary));
  if (!volume.spares.empty()) {
    text += fmt::format("spares = {}\n", QuoteList(volume.spares));
  }
  const auto add = [&](const char* key, const std::string& value) {
    if (!value.empty()) {
      text += fmt::format("{} = {}\n", key, Quote(value));
    }
  };
  add("spare_after", volume.spare_after);
  add("rpo", volume.rpo);
  add("on_lag", volume.on_lag);
  add("on_loss", volume.on_loss);
  add("deadline", volume.deadline);
  add("suspend", volume.suspend);
  add("domain", volume.domain);
  add("check", volume.check);
  add("credit", volume.credit);
  return text;
}

}  // namespace pmirror::cli
