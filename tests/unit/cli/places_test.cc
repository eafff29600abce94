// SPDX-License-Identifier: BSD-3-Clause
// Where a node's copy lies, as a person said it in --backing and --mount.
#include "cli/places.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pmirror::cli {
namespace {

using testing::HasSubstr;

const SandboxVolume kVolume{.name = "v0", .uuid = {}, .primary = "n1"};

TEST(PlacesTest, WhatIsSaidOfOneNodeWinsWhereverItStands) {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"/srv/v0", "n2=/data=1/v0"}, {"n2=/data=1/v0", "/srv/v0"}}) {
    EXPECT_TRUE(CheckPlaces(words, {"n1", "n2"}).ok());
    EXPECT_EQ(PlacesOf({}, kVolume, "n1", words, {"/mnt"})->backing, "/srv/v0");
    EXPECT_EQ(PlacesOf({}, kVolume, "n2", words, {"/mnt"})->backing, "/data=1/v0");
  }
}

TEST(PlacesTest, P9AWordThatIsNoPlaceIsNamed) {
  const auto said = [](const std::string& word) {
    return std::string(CheckPlaces({word}, {"n1", "n2"}).message());
  };
  for (const char* word : {"", "srv/v0", "n2=", "n2=srv"}) {
    EXPECT_THAT(said(word), HasSubstr("no absolute path")) << word;
  }
  EXPECT_THAT(said("n7=/srv"), HasSubstr("'n7=/srv' names none of the volume's nodes (n1, n2)"));
}

TEST(PlacesTest, P9AMissingOptionIsNamed) {
  const absl::Status status = PlacesOf({}, kVolume, "n2", {"n1=/srv"}, {"/mnt"}).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("--backing"));
}

}  // namespace
}  // namespace pmirror::cli
