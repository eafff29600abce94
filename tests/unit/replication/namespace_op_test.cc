// SPDX-License-Identifier: BSD-3-Clause
// The codec of namespace operations: what goes in comes out, and nothing malformed gets through.
#include "replication/namespace_op.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <random>
#include <string>
#include <vector>

namespace pmirror {
namespace {

constexpr int kKinds = static_cast<int>(OpKind::kAllocate);

std::vector<std::byte> Encoded(const NamespaceOp& op) {
  std::vector<std::byte> bytes;
  Encode(op, bytes);
  return bytes;
}

NamespaceOp Create(const std::string& name) {
  NamespaceOp op;
  op.kind = OpKind::kCreate;
  op.target = FileId{7};
  op.parent = FileId::kRoot;
  op.mode = S_IFREG | 0640;
  op.name = name;
  return op;
}

std::string RandomText(std::mt19937_64& random, size_t most) {
  std::string text(1 + random() % most, 'x');
  for (char& c : text) {
    c = static_cast<char>('a' + random() % 26);
  }
  return text;
}

NamespaceOp RandomOp(std::mt19937_64& random) {
  NamespaceOp op;
  op.kind = static_cast<OpKind>(1 + random() % kKinds);
  op.flags = static_cast<uint32_t>(random());
  op.target = FileId{1 + random() % 1000};
  op.parent = FileId{random()};
  op.new_parent = FileId{random()};
  op.replaced = FileId{random()};
  op.mode = static_cast<uint32_t>(random()) & 07777;
  op.uid = static_cast<uint32_t>(random());
  op.gid = static_cast<uint32_t>(random());
  op.rdev = random();
  op.atime = {static_cast<int64_t>(random()), static_cast<int64_t>(random())};
  op.mtime = {static_cast<int64_t>(random()), static_cast<int64_t>(random())};
  op.extent = {random() >> 2, random() >> 2};
  op.generation = random();
  switch (op.kind) {
    case OpKind::kCreate:
      op.mode |= S_IFLNK;
      op.value = RandomText(random, 4095);
      [[fallthrough]];
    case OpKind::kLink:
    case OpKind::kUnlink:
    case OpKind::kRemoveDirectory:
    case OpKind::kRemoveXattr:
      op.name = RandomText(random, kMaxNameBytes);
      break;
    case OpKind::kRename:
      op.name = RandomText(random, kMaxNameBytes);
      op.new_name = RandomText(random, kMaxNameBytes);
      break;
    case OpKind::kSetXattr:
      op.name = RandomText(random, kMaxNameBytes);
      op.value = RandomText(random, 65536);
      break;
    default:
      break;
  }
  return op;
}

TEST(NamespaceOp, RandomOperationsComeBackAsTheyWere) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 2000; ++i) {
    const NamespaceOp op = RandomOp(random);
    const Result<NamespaceOp> decoded = DecodeNamespaceOp(Encoded(op));
    ASSERT_TRUE(decoded.ok()) << Name(op.kind);
    ASSERT_EQ(decoded.value(), op) << Name(op.kind);
  }
}

TEST(NamespaceOp, EncodeAppends) {
  std::vector<std::byte> bytes(3, std::byte{9});
  Encode(Create("a"), bytes);
  EXPECT_EQ(bytes[2], std::byte{9});
  EXPECT_TRUE(DecodeNamespaceOp(std::span(bytes).subspan(3)).ok());
}

TEST(NamespaceOp, CutAtEveryByteOrOneByteTooManyIsRefused) {
  const std::vector<std::byte> bytes = Encoded(Create("name"));
  for (size_t length = 0; length < bytes.size(); ++length) {
    const Result<NamespaceOp> decoded = DecodeNamespaceOp(std::span(bytes).first(length));
    ASSERT_FALSE(decoded.ok()) << length;
    EXPECT_EQ(decoded.error().code, EBADMSG);
  }
  std::vector<std::byte> longer = bytes;
  longer.push_back({});
  EXPECT_FALSE(DecodeNamespaceOp(longer).ok());
}

TEST(NamespaceOp, BadEntryNamesAreRefused) {
  for (const std::string& name : {std::string(), std::string("."), std::string(".."), std::string("a/b"),
                                  std::string("a\0b", 3), std::string(256, 'n')}) {
    EXPECT_FALSE(DecodeNamespaceOp(Encoded(Create(name))).ok()) << name;
  }
  EXPECT_TRUE(DecodeNamespaceOp(Encoded(Create(std::string(255, 'n')))).ok());
  EXPECT_TRUE(DecodeNamespaceOp(Encoded(Create("..."))).ok());
  NamespaceOp rename = Create("old");
  rename.kind = OpKind::kRename;
  EXPECT_FALSE(DecodeNamespaceOp(Encoded(rename)).ok());
  rename.new_name = "new";
  EXPECT_TRUE(DecodeNamespaceOp(Encoded(rename)).ok());
}

TEST(NamespaceOp, AttributeNamesMayHoldASlashAndValuesAreBounded) {
  NamespaceOp op = Create("user.a/b");
  op.kind = OpKind::kSetXattr;
  op.value = std::string(65536, '\0');
  EXPECT_TRUE(DecodeNamespaceOp(Encoded(op)).ok());
  op.value += 'x';
  EXPECT_FALSE(DecodeNamespaceOp(Encoded(op)).ok());
}

TEST(NamespaceOp, StringsThatAKindDoesNotUseAreRefused) {
  NamespaceOp op;
  op.kind = OpKind::kTruncate;
  op.target = FileId{3};
  EXPECT_TRUE(DecodeNamespaceOp(Encoded(op)).ok());
  op.name = "x";
  EXPECT_FALSE(DecodeNamespaceOp(Encoded(op)).ok());
}

TEST(NamespaceOp, ASymlinkNeedsATargetAndOthersHaveNone) {
  NamespaceOp op = Create("s");
  op.value = "target";
  EXPECT_FALSE(DecodeNamespaceOp(Encoded(op)).ok());
  op.mode = S_IFLNK | 0777;
  EXPECT_TRUE(DecodeNamespaceOp(Encoded(op)).ok());
  op.value = std::string(4096, 't');
  EXPECT_FALSE(DecodeNamespaceOp(Encoded(op)).ok());
}

TEST(NamespaceOp, ATargetAndAnExtentThatFitsAreNeeded) {
  NamespaceOp op = Create("a");
  op.target = FileId::kNone;
  EXPECT_FALSE(DecodeNamespaceOp(Encoded(op)).ok());
  op = Create("a");
  op.extent = {INT64_MAX, 1};
  EXPECT_FALSE(DecodeNamespaceOp(Encoded(op)).ok());
  op.extent = {INT64_MAX, 0};
  EXPECT_TRUE(DecodeNamespaceOp(Encoded(op)).ok());
}

// Whatever is accepted means the same when it is encoded again: there is one encoding of each operation.
TEST(NamespaceOp, MutatedBytesAreRefusedOrAreAnotherOperationsOnlyEncoding) {
  std::mt19937_64 random(2);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> bytes = Encoded(RandomOp(random));
    const size_t changes = 1 + random() % 4;
    for (size_t c = 0; c < changes; ++c) {
      bytes[random() % std::min<size_t>(bytes.size(), 200)] = static_cast<std::byte>(random());
    }
    bytes.resize(random() % 8 == 0 ? random() % bytes.size() : bytes.size());
    const Result<NamespaceOp> decoded = DecodeNamespaceOp(bytes);
    if (decoded.ok()) {
      ASSERT_EQ(Encoded(decoded.value()), bytes);
    } else {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace pmirror
