// SPDX-License-Identifier: BSD-3-Clause
// The only file of the daemon that includes toml++.
#include "server/toml_section.h"

#define TOML_EXCEPTIONS 0
#define TOML_HEADER_ONLY 1
#define TOML_ENABLE_FORMATTERS 1
#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cassert>
#include <iterator>
#include <sstream>

namespace pmirror::server {
namespace {

// A value as the operator wrote it.
std::string Quoted(const toml::node& node) {
  std::ostringstream out;
  node.visit([&out](const auto& value) { out << value; });
  return out.str();
}

}  // namespace

void TomlErrors::Add(unsigned line, unsigned column, std::string_view key, std::string_view sentence) {
  if (!status_.ok()) {
    return;
  }
  std::string place = file_;
  if (line > 0) {
    place += fmt::format(":{}:{}", line, column);
  }
  status_ =
      absl::InvalidArgumentError(fmt::format("{}: {}{}{}", place, key, key.empty() ? "" : ": ", sentence));
}

TomlSection::TomlSection(const toml::table& table, std::string prefix, TomlErrors& errors)
    : table_(&table), prefix_(std::move(prefix)), errors_(&errors) {}

const toml::node* TomlSection::Find(std::string_view key) {
  assert(std::find(allowed_.begin(), allowed_.end(), key) != allowed_.end());
  return errors_->ok() ? table_->get(key) : nullptr;
}

void TomlSection::At(const toml::node& node, std::string_view key, std::string_view sentence) {
  const toml::source_position at = node.source().begin;
  errors_->Add(at.line, at.column, fmt::format("{}{}", prefix_, key), sentence);
}

std::string TomlSection::String(std::string_view key, std::optional<std::string> fallback) {
  const toml::node* node = Find(key);
  if (node == nullptr) {
    if (!fallback) {
      Fail(key, "is missing; allowed: a string");
    }
    return fallback.value_or("");
  }
  const toml::value<std::string>* text = node->as_string();
  if (text == nullptr) {
    At(*node, key, fmt::format("{} is no string; allowed: a string in quotes", Quoted(*node)));
    return "";
  }
  return text->get();
}

std::vector<std::string> TomlSection::Strings(std::string_view key, size_t least) {
  std::vector<std::string> strings;
  const toml::node* node = Find(key);
  if (node == nullptr) {
    if (least > 0) {
      Fail(key, "is missing; allowed: a list of strings");
    }
    return strings;
  }
  const toml::array* list = node->as_array();
  if (list == nullptr) {
    At(*node, key,
       fmt::format("{} is no list; allowed: a list of strings, as in [\"a\", \"b\"]", Quoted(*node)));
    return strings;
  }
  for (const toml::node& entry : *list) {
    const toml::value<std::string>* text = entry.as_string();
    if (text == nullptr) {
      At(entry, key, fmt::format("{} is no string; allowed: strings in quotes", Quoted(entry)));
      return strings;
    }
    strings.push_back(text->get());
  }
  if (strings.size() < least) {
    At(*node, key, fmt::format("has {} entries; needed: at least {}", strings.size(), least));
  }
  return strings;
}

std::vector<TomlSection> TomlSection::Sections(std::string_view key) {
  std::vector<TomlSection> sections;
  const toml::node* node = Find(key);
  if (node == nullptr) {
    return sections;
  }
  const toml::array* list = node->as_array();
  if (list == nullptr ||
      !std::all_of(list->begin(), list->end(), [](const toml::node& entry) { return entry.is_table(); })) {
    At(*node, key, fmt::format("is no list of tables; write one [[{}]] heading for each", key));
    return sections;
  }
  for (const toml::node& entry : *list) {
    sections.emplace_back(*entry.as_table(), fmt::format("{}{}.", prefix_, key), *errors_);
  }
  return sections;
}

int TomlSection::OneOf(std::string_view key, std::string_view fallback, const std::vector<Word>& words) {
  const std::string text = String(key, std::string(fallback));
  for (const Word& word : words) {
    if (word.text == text) {
      return word.value;
    }
  }
  std::vector<std::string_view> texts;
  std::transform(words.begin(), words.end(), std::back_inserter(texts),
                 [](const Word& word) { return word.text; });
  Wrong(key, fmt::format("is not known; allowed: {}", fmt::join(texts, ", ")));
  return words.front().value;
}

void TomlSection::Wrong(std::string_view key, std::string_view sentence) {
  if (const toml::node* node = Find(key); node != nullptr) {
    At(*node, key, fmt::format("{} {}", Quoted(*node), sentence));
  } else {
    Fail(key, sentence);
  }
}

void TomlSection::WrongEntry(std::string_view key, size_t index, std::string_view sentence) {
  const toml::node* node = Find(key);
  const toml::node* entry = node != nullptr && node->is_array() ? node->as_array()->get(index) : nullptr;
  if (entry != nullptr) {
    At(*entry, key, fmt::format("{} {}", Quoted(*entry), sentence));
  }
}

void TomlSection::Fail(std::string_view key, std::string_view sentence) {
  // The root table begins at line 1, which says nothing: only real headings are named as the place.
  const toml::source_position at = table_->source().begin;
  errors_->Add(prefix_.empty() ? 0 : at.line, at.column, fmt::format("{}{}", prefix_, key), sentence);
}

void TomlSection::AllowOnly(std::vector<std::string_view> keys) {
  allowed_ = std::move(keys);
  for (const auto& [key, node] : *table_) {
    if (std::find(allowed_.begin(), allowed_.end(), key.str()) == allowed_.end()) {
      const toml::source_position at = key.source().begin;
      errors_->Add(at.line, at.column, fmt::format("{}{}", prefix_, key.str()),
                   fmt::format("is no key; allowed here: {}", fmt::join(allowed_, ", ")));
      return;
    }
  }
}

std::string TomlText(const std::string& text) {
  std::ostringstream out;
  out << toml::value<std::string>(text);
  return out.str();
}

std::string TomlText(const std::vector<std::string>& texts) {
  toml::array array;
  for (const std::string& text : texts) {
    array.push_back(text);
  }
  std::ostringstream out;
  out << array;
  return out.str();
}

absl::Status ReadToml(std::string_view text, const std::string& file,
                      absl::FunctionRef<void(TomlSection& root, TomlErrors& errors)> read) {
  TomlErrors errors(file);
  const toml::parse_result parsed = toml::parse(text, file);
  if (!parsed) {
    const toml::source_position at = parsed.error().source().begin;
    errors.Add(at.line, at.column, "", fmt::format("is no TOML: {}", parsed.error().description()));
    return errors.status();
  }
  TomlSection root(parsed.table(), "", errors);
  read(root, errors);
  return errors.status();
}

}  // namespace pmirror::server
