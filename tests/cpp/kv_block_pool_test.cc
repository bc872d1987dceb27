#include <algorithm>
#include <list>
#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "kv/block_pool.h"

namespace treadle::kv {
namespace {

TEST(BlockPool, GivesFreeBlocksThenTheLeastRecentlyUsed) {
  std::vector<BlockId> evicted;
  BlockPool pool(3, [&](BlockId b) { evicted.push_back(b); });
  const BlockId a = pool.allocate();
  const BlockId b = pool.allocate();
  const BlockId c = pool.allocate();
  EXPECT_EQ(pool.allocate(), kNoBlock);
  for (const BlockId block : {a, b, c}) pool.set_keep(block, true);
  for (const BlockId block : {b, c, a}) pool.release(block);
  EXPECT_EQ(pool.num_cached(), 3);
  EXPECT_EQ(pool.num_available(), 3);
  pool.retain(b);  // used again: not the oldest any more
  pool.release(b);
  EXPECT_EQ(pool.allocate(), c);
  EXPECT_EQ(pool.allocate(), a);
  EXPECT_EQ(pool.allocate(), b);
  EXPECT_EQ(evicted, (std::vector<BlockId>{c, a, b}));
  EXPECT_EQ(pool.num_evicted(), 3U);
}

TEST(BlockPool, AStampTellsThatABlockWasHandedOutAgain) {
  BlockPool pool(1);
  const BlockId block = pool.allocate();
  const uint32_t stamp = pool.stamp(block);
  pool.set_keep(block, true);
  pool.release(block);
  pool.retain(block);
  EXPECT_EQ(pool.stamp(block), stamp);
  pool.release(block);
  EXPECT_EQ(pool.allocate(), block);
  EXPECT_NE(pool.stamp(block), stamp);
  pool.release(block);
  EXPECT_EQ(pool.state(block), BlockState::kFree) << "keep does not outlive the content";
}

TEST(BlockPool, UnkeepingACachedBlockFreesIt) {
  BlockPool pool(2);
  const BlockId block = pool.allocate();
  pool.set_keep(block, true);
  pool.release(block);
  EXPECT_EQ(pool.state(block), BlockState::kCached);
  pool.set_keep(block, false);
  EXPECT_EQ(pool.state(block), BlockState::kFree);
  EXPECT_EQ(pool.num_evicted(), 0U);
  EXPECT_STREQ(pool.check_invariants(), "");
}

// Against sets and a list that are kept naively.
TEST(BlockPool, BehavesAsItsModelUnderRandomUse) {
  constexpr int32_t kBlocks = 9;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    std::mt19937 random(seed);
    std::vector<BlockId> evicted;
    BlockPool pool(kBlocks, [&](BlockId b) { evicted.push_back(b); });
    std::vector<int32_t> references(kBlocks, 0);
    std::vector<bool> keep(kBlocks, false);
    std::list<BlockId> cached;  // oldest first
    for (int i = 0; i < 400; ++i) {
      const auto block = static_cast<BlockId>(random() % kBlocks);
      const bool is_cached = std::ranges::find(cached, block) != cached.end();
      evicted.clear();
      switch (random() % 5) {
        case 0: {
          const bool any_free = pool.num_free() > 0;
          const BlockId got = pool.allocate();
          if (any_free) {
            ASSERT_NE(got, kNoBlock);
            ASSERT_TRUE(evicted.empty());
            ASSERT_EQ(references[got], 0);
            ASSERT_EQ(std::ranges::find(cached, got), cached.end());
          } else if (!cached.empty()) {
            ASSERT_EQ(got, cached.front());
            ASSERT_EQ(evicted, std::vector<BlockId>{got});
            cached.pop_front();
          } else {
            ASSERT_EQ(got, kNoBlock);
            break;
          }
          references[got] = 1;
          keep[got] = false;
          break;
        }
        case 1:
          if (references[block] == 0 && !is_cached) break;
          pool.retain(block);
          cached.remove(block);
          ++references[block];
          break;
        case 2:
        case 3:
          if (references[block] == 0) break;
          pool.release(block);
          if (--references[block] == 0 && keep[block]) cached.push_back(block);
          break;
        default:
          if (references[block] == 0 && !is_cached) break;
          keep[block] = random() % 2 == 0;
          pool.set_keep(block, keep[block]);
          if (!keep[block]) cached.remove(block);
      }
      ASSERT_STREQ(pool.check_invariants(), "") << "seed " << seed << ", step " << i;
      int32_t active = 0;
      for (BlockId b = 0; b < kBlocks; ++b) {
        ASSERT_EQ(pool.references(b), references[b]);
        active += references[b] > 0 ? 1 : 0;
      }
      ASSERT_EQ(pool.num_active(), active);
      ASSERT_EQ(pool.num_cached(), static_cast<int32_t>(cached.size()));
      ASSERT_EQ(pool.num_free(), kBlocks - active - pool.num_cached());
    }
  }
}

}  // namespace
}  // namespace treadle::kv
