// SPDX-License-Identifier: BSD-3-Clause
// The durable record of a replica: exact round trips, and not one damaged byte is accepted.
#include "recovery/volume_record.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/unit/server/temp_directory.h"
#include "tests/unit/server/tree.h"

namespace pmirror::recovery {
namespace {

using server::ReadFile;
using server::TempDirectory;

VolumeRecord Sample() {
  VolumeRecord record;
  for (size_t i = 0; i < 16; ++i) {
    record.volume[i] = static_cast<std::byte>(i * 17);
  }
  record.generation = UINT64_MAX;
  record.epoch = Epoch{3};
  record.mount_number = 9;
  record.operation = 123456789;
  record.clean = false;
  record.undo = 4711;
  record.rolled_back = true;
  record.boot = BootId();
  return record;
}

TEST(VolumeRecord, ComesBackAsItWasAndIsReplacedAsAWhole) {
  const TempDirectory directory;
  const std::string path = directory / "v0.copy";
  ASSERT_TRUE(LoadVolumeRecord(path).ok());
  EXPECT_FALSE(LoadVolumeRecord(path)->has_value());
  VolumeRecord record = Sample();
  ASSERT_TRUE(StoreVolumeRecord(path, record).ok());
  EXPECT_EQ(LoadVolumeRecord(path)->value(), record);
  record.clean = true;
  record.operation = 0;
  ASSERT_TRUE(StoreVolumeRecord(path, record).ok());
  EXPECT_EQ(LoadVolumeRecord(path)->value(), record);
}

TEST(VolumeRecord, EveryDamagedByteAndEveryCutIsRefusedByName) {
  const TempDirectory directory;
  const std::string path = directory / "v0.copy";
  ASSERT_TRUE(StoreVolumeRecord(path, Sample()).ok());
  const std::string good = ReadFile(path);
  const auto refused = [&](const std::string& text) {
    std::ofstream(path, std::ios::trunc) << text;
    const auto loaded = LoadVolumeRecord(path);
    return !loaded.ok() && loaded.status().code() == absl::StatusCode::kDataLoss &&
           std::string(loaded.status().message()).find(path) != std::string::npos;
  };
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    EXPECT_TRUE(refused(bad)) << "byte " << at;
    EXPECT_TRUE(refused(good.substr(0, at))) << "cut at " << at;
  }
  EXPECT_TRUE(refused(good + "\n"));
  EXPECT_TRUE(refused(std::string(100000, 'x')));
}

TEST(VolumeRecord, AStateDirectoryThatCannotBeWrittenIsAnErrorAndKeepsTheOldRecord) {
  const TempDirectory directory;
  EXPECT_FALSE(StoreVolumeRecord(directory / "missing/v0.copy", Sample()).ok());
  if (!TempDirectory().MountSmall(4096)) {
    GTEST_SKIP() << "mounting is not allowed here";
  }
  TempDirectory small;
  ASSERT_TRUE(small.MountSmall(8192));
  const std::string path = small / "v0.copy";
  ASSERT_TRUE(StoreVolumeRecord(path, Sample()).ok());
  std::ofstream(small / "filler") << std::string(8192, 'x');
  VolumeRecord other = Sample();
  other.operation = 1;
  EXPECT_FALSE(StoreVolumeRecord(path, other).ok());
  EXPECT_EQ(LoadVolumeRecord(path)->value(), Sample());
}

TEST(Uuid, TextRoundTripsAndOtherTextIsNone) {
  const Uuid uuid = Sample().volume;
  EXPECT_EQ(UuidText(uuid), "00112233-4455-6677-8899-aabbccddeeff");
  EXPECT_EQ(ParseUuid(UuidText(uuid)), uuid);
  EXPECT_FALSE(ParseUuid("00112233445566778899aabbccddeeff"));
  EXPECT_FALSE(ParseUuid("00112233-4455-6677-8899-aabbccddeefg"));
  EXPECT_FALSE(ParseUuid(""));
}

}  // namespace
}  // namespace pmirror::recovery
