#include <array>
#include <map>
#include <random>
#include <utility>

#include <gtest/gtest.h>

#include "kv/prefix_index.h"

namespace treadle::kv {
namespace {

using Tokens = std::array<int32_t, ops::kBlockTokens>;

Tokens tokens(int32_t kind) {
  Tokens t;
  t.fill(3);
  t[static_cast<size_t>(kind) % t.size()] = kind;
  return t;
}

TEST(PrefixIndex, FindsABlockByItsParentAndExactTokens) {
  PrefixIndex index(4);
  EXPECT_EQ(index.insert(0, kSharedRoot, tokens(1)), 0);
  const ContentKey first = index.key(0);
  EXPECT_EQ(index.insert(1, first, tokens(1)), 1);
  const ContentKey second = index.key(1);
  EXPECT_NE(first, second);
  EXPECT_EQ(index.find(kSharedRoot, tokens(1)), 0);
  EXPECT_EQ(index.find(first, tokens(1)), 1);
  EXPECT_EQ(index.find(second, tokens(1)), kNoBlock);
  EXPECT_EQ(index.find(first, tokens(2)), kNoBlock);
}

TEST(PrefixIndex, TheFirstOfTwinsStaysRegistered) {
  PrefixIndex index(4);
  EXPECT_EQ(index.insert(2, kSharedRoot, tokens(1)), 2);
  EXPECT_EQ(index.insert(3, kSharedRoot, tokens(1)), 2);
  EXPECT_FALSE(index.contains(3));
  EXPECT_EQ(index.size(), 1U);
  index.erase(3);  // not registered: nothing happens
  EXPECT_EQ(index.find(kSharedRoot, tokens(1)), 2);
}

TEST(PrefixIndex, KeysAreNeverUsedTwice) {
  PrefixIndex index(2);
  index.insert(0, kSharedRoot, tokens(1));
  const ContentKey before = index.key(0);
  index.erase(0);
  EXPECT_FALSE(index.contains(0));
  index.insert(1, kSharedRoot, tokens(1));
  EXPECT_NE(index.key(1), before);
  EXPECT_NE(index.new_root(), index.new_root());
}

TEST(PrefixIndex, BehavesAsAMapUnderRandomUse) {
  constexpr int32_t kBlocks = 16;
  PrefixIndex index(kBlocks);
  std::map<std::pair<ContentKey, Tokens>, BlockId> model;
  std::array<std::pair<ContentKey, Tokens>, kBlocks> content;
  std::array<bool, kBlocks> used{};
  std::mt19937 random(1);
  for (int i = 0; i < 5000; ++i) {
    const auto block = static_cast<BlockId>(random() % kBlocks);
    const auto at = static_cast<size_t>(block);
    if (used[at]) {
      index.erase(block);
      model.erase(content[at]);
      used[at] = false;
    } else {
      const std::pair<ContentKey, Tokens> what{random() % 3,
                                               tokens(static_cast<int32_t>(random() % 9))};
      const auto twin = model.find(what);
      const BlockId holder = index.insert(block, what.first, what.second);
      if (twin == model.end()) {
        used[at] = true;
        content[at] = what;
        model.emplace(what, block);
        ASSERT_EQ(holder, block);
      } else {
        ASSERT_EQ(holder, twin->second);
      }
    }
    ASSERT_EQ(index.size(), model.size());
    for (const auto& [what, holder] : model) {
      ASSERT_EQ(index.find(what.first, what.second), holder);
    }
  }
}

}  // namespace
}  // namespace treadle::kv
