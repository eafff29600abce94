// SPDX-License-Identifier: BSD-3-Clause
// What a batch holds is what its captures and operations, one after the other, would have left (docs/internals/rpo.md).
#include "recovery/batch.h"

#include <gtest/gtest.h>
#include <linux/falloc.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace pmirror::recovery {
namespace {

using Bytes = std::vector<std::byte>;

std::shared_ptr<const Bytes> Payload(const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  return std::make_shared<const Bytes>(bytes.begin(), bytes.end());
}

std::string Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void Append(BatchBuilder& batch, uint64_t number, const NamespaceOp& op) {
  auto encoded = std::make_shared<Bytes>();
  Encode(op, *encoded);
  batch.Append(number, encoded, op);
}

NamespaceOp Truncate(FileId file, uint64_t size) {
  NamespaceOp op;
  op.kind = OpKind::kTruncate;
  op.target = file;
  op.extent.offset = size;
  return op;
}

NamespaceOp Punch(FileId file, Extent extent) {
  NamespaceOp op;
  op.kind = OpKind::kAllocate;
  op.flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  op.target = file;
  op.extent = extent;
  return op;
}

TEST(Batch, APageThatWasSyncedAHundredTimesIsInItOnce) {
  BatchBuilder batch;
  const WireRange range{.offset = 4096, .length = 4};
  for (int i = 100; i < 200; ++i) {
    batch.Lay(FileId{5}, {&range, 1}, Payload("x" + std::to_string(i)));
  }
  EXPECT_EQ(batch.bytes(), 4U);
  const Bytes encoded = batch.Encode({.number = 3, .mount_number = 9, .cut_at = 77});
  const auto view = BatchView::Parse(encoded);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->identity().number, 3U);
  EXPECT_EQ(view->identity().mount_number, 9U);
  EXPECT_EQ(view->identity().cut_at, 77U);
  ASSERT_EQ(view->data().size(), 1U);
  EXPECT_EQ(Text(view->data()[0].bytes), "x199");
  EXPECT_EQ(view->data()[0].offset, 4096U);
}

TEST(Batch, WhatAnOperationErasedIsNotBroughtBackByAnEarlierCapture) {
  BatchBuilder batch;
  const WireRange range{.offset = 0, .length = 8};
  batch.Lay(FileId{5}, {&range, 1}, Payload("abcdefgh"));
  Append(batch, 7, Truncate(FileId{5}, 3));
  const auto encoded = batch.Encode({});
  const auto view = BatchView::Parse(encoded);
  ASSERT_EQ(view->data().size(), 1U);
  EXPECT_EQ(Text(view->data()[0].bytes), "abc");
  EXPECT_EQ(view->first_operation(), 7U);
}

TEST(Batch, SaysWhichFilesItsOperationsMayHaveRemoved) {
  BatchBuilder batch;
  const WireRange range{.offset = 0, .length = 1};
  batch.Lay(FileId{5}, {&range, 1}, Payload("a"));
  batch.Lay(FileId{6}, {&range, 1}, Payload("b"));
  NamespaceOp op;
  op.kind = OpKind::kUnlink;
  op.target = FileId{6};
  op.parent = FileId::kRoot;
  op.name = "n";
  Append(batch, 1, op);
  const auto encoded = batch.Encode({});
  const auto view = BatchView::Parse(encoded);
  ASSERT_EQ(view->data().size(), 2U);
  EXPECT_FALSE(view->data()[0].perhaps_gone);
  EXPECT_TRUE(view->data()[1].perhaps_gone);
}

// P9: any byte of it.
TEST(Batch, P9_ADamagedOrShortBatchIsNone) {
  BatchBuilder batch;
  const WireRange range{.offset = 0, .length = 40};
  batch.Lay(FileId{5}, {&range, 1}, Payload(std::string(40, 'a')));
  Append(batch, 1, Truncate(FileId{9}, 3));
  const Bytes good = batch.Encode({});
  ASSERT_TRUE(BatchView::Parse(good).ok());
  for (size_t i = 0; i < good.size(); ++i) {
    Bytes bad = good;
    bad[i] ^= std::byte{4};
    EXPECT_FALSE(BatchView::Parse(bad).ok()) << i;
    EXPECT_FALSE(BatchView::Parse(std::span(good).first(i)).ok()) << i;
  }
}

// A file of letters. What lies beyond the end is nothing, and zero when the file grows over it.
class Letters {
 public:
  void Write(uint64_t offset, const std::string& text) {  // none: as long as that at least
    Grow(offset + text.size());
    text_.replace(offset, text.size(), text);
  }
  void Apply(const NamespaceOp& op) {
    if (op.kind == OpKind::kTruncate) {
      text_.resize(op.extent.offset, '.');
    } else {
      for (uint64_t i = op.extent.offset; i < std::min<uint64_t>(op.extent.end(), text_.size()); ++i) {
        text_[i] = '.';
      }
    }
  }
  const std::string& text() const { return text_; }

 private:
  void Grow(uint64_t size) { text_.resize(std::max<uint64_t>(text_.size(), size), '.'); }
  std::string text_ = "the base";
};

void ApplyTo(std::map<FileId, Letters>& files, std::span<const std::byte> encoded) {
  const auto view = BatchView::Parse(encoded);
  ASSERT_TRUE(view.ok()) << view.status();
  for (const auto bytes : view->operations()) {
    const NamespaceOp op = DecodeNamespaceOp(bytes).value();
    files[op.target].Apply(op);
  }
  for (const BatchView::Data& data : view->data()) {
    files[data.file].Write(data.offset, Text(data.bytes));
  }
}

// P2: random histories; some go into one builder, some into several that are laid over each other.
TEST(Batch, P2_LeavesWhatTheCapturesAndOperationsWouldHaveLeft) {
  for (uint32_t seed = 0; seed < 3000; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](uint32_t limit) { return random() % limit; };
    std::map<FileId, Letters> truth;
    std::map<FileId, Letters> replica;
    BatchBuilder all;
    BatchBuilder part;
    uint64_t operation = 1;
    const uint32_t steps = 1 + below(20);
    for (uint32_t step = 0; step < steps; ++step) {
      const FileId file{10 + below(2)};
      if (below(4) == 0) {
        const NamespaceOp op =
            below(2) == 0 ? Truncate(file, below(30)) : Punch(file, {below(30), 1 + below(10)});
        truth[file].Apply(op);
        Append(part, operation++, op);
      } else {
        std::vector<WireRange> ranges;
        std::string payload;
        uint64_t offset = below(10);
        for (uint32_t i = 0; i < 1 + below(3); ++i) {
          const uint64_t length = 1 + below(8);
          const std::string text(length, static_cast<char>('A' + below(26)));
          truth[file].Write(offset, text);
          payload += text;
          ranges.push_back({.offset = offset, .length = length});
          offset += length + below(5);
        }
        part.Lay(file, ranges, Payload(payload));
      }
      if (below(5) == 0) {
        all.Lay(part);
        part = {};
      }
      if (below(8) == 0) {
        ApplyTo(replica, all.Encode({}));
        all = {};
      }
    }
    all.Lay(part);
    ApplyTo(replica, all.Encode({}));
    for (const auto& [file, letters] : truth) {
      ASSERT_EQ(replica[file].text(), letters.text()) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace pmirror::recovery
