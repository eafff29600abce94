// SPDX-License-Identifier: BSD-3-Clause
// A [[volume]] of a node's configuration file, as text. Pure. Values are as the person wrote them; the daemon checks what it understands itself.
#pragma once

#include <string>
#include <vector>

namespace pmirror::cli {

struct VolumeSection {
  std::string name;
  std::string uuid;
  std::string backing;
  std::string mount;
  std::vector<std::string> nodes;
  std::string primary;
  std::vector<std::string> spares = {};
  // What is empty is left to the daemon's default.
  std::string spare_after = {};
  std::string rpo = {};
  std::string on_lag = {};
  std::string on_loss = {};
  std::string deadline = {};
  std::string suspend = {};
  std::string domain = {};
  std::string check = {};
  std::string credit = {};
};

std::string ToToml(const VolumeSection& volume);

// A TOML basic string, and a list of them.
std::string Quote(const std::string& text);
std::string QuoteList(const std::vector<std::string>& texts);

}  // namespace pmirror::cli
