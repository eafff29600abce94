// SPDX-License-Identifier: BSD-3-Clause
// One table of a TOML file, read key by key. Remembers the first thing that is wrong, in the form
// FILE:LINE:COLUMN: key: sentence, so that the operator gets one error, at its place. After an error every
// further read returns a default and changes nothing.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace toml {
inline namespace v3 {
class table;
class node;
}  // namespace v3
}  // namespace toml

namespace pmirror::server {

// The one error of a file.
class TomlErrors {
 public:
  explicit TomlErrors(std::string file) : file_(std::move(file)) {}
  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }
  // Keeps the first. line 0: no place.
  void Add(unsigned line, unsigned column, std::string_view key, std::string_view sentence);

 private:
  std::string file_;
  absl::Status status_;
};

class TomlSection {
 public:
  // `prefix`: how keys of this table are called in errors, "volume." or "". Both referents must outlive the
  // section.
  TomlSection(const toml::table& table, std::string prefix, TomlErrors& errors);

  // Any other key in this table is an error. Call it first: a misspelt key explains best why another is
  // missing.
  void AllowOnly(std::vector<std::string_view> keys);

  // A string; an error when it is missing and there is no default.
  std::string String(std::string_view key, std::optional<std::string> fallback = std::nullopt);
  // A list of strings, at least `least` of them; `least` 0: may be missing.
  std::vector<std::string> Strings(std::string_view key, size_t least);
  // The tables of [[key]], in order; may be missing.
  std::vector<TomlSection> Sections(std::string_view key);

  // One of the words; an error that lists them otherwise.
  struct Word {
    std::string_view text;
    int value;
  };
  int OneOf(std::string_view key, std::string_view fallback, const std::vector<Word>& words);

  // Says that the value of `key` is wrong; `sentence` begins with a verb ("is no size; allowed: ...") and
  // follows the quoted value.
  void Wrong(std::string_view key, std::string_view sentence);
  // The same for entry `index` of a list.
  void WrongEntry(std::string_view key, size_t index, std::string_view sentence);
  // An error of the table as a whole.
  void Fail(std::string_view key, std::string_view sentence);

 private:
  const toml::node* Find(std::string_view key);
  void At(const toml::node& node, std::string_view key, std::string_view sentence);

  const toml::table* table_;
  std::string prefix_;
  TomlErrors* errors_;
  std::vector<std::string_view> allowed_;
};

// As a value of a TOML file: "a string", and ["a", "list"].
std::string TomlText(const std::string& text);
std::string TomlText(const std::vector<std::string>& texts);

// Parses `text` and hands the root table to `read`; returns the first error of either.
absl::Status ReadToml(std::string_view text, const std::string& file,
                      absl::FunctionRef<void(TomlSection& root, TomlErrors& errors)> read);

}  // namespace pmirror::server
