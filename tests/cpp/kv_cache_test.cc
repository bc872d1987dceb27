#include "kv/kv_cache.h"

#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "kv_world.h"

namespace treadle::kv {
namespace {

constexpr int32_t kTokens = ops::kBlockTokens;

std::vector<int32_t> numbers(int32_t count, int32_t first = 0) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) ids[static_cast<size_t>(i)] = first + i;
  return ids;
}

// As a request that runs to its end: everything but the last id is computed.
SequenceKv computed(KvCache& cache, const std::vector<int32_t>& ids, const SessionTail& tail = {}) {
  SequenceKv seq;
  std::vector<BlockCopy> copies;
  cache.match(ids, kSharedRoot, tail, seq);
  EXPECT_TRUE(cache.reserve(seq, static_cast<int32_t>(ids.size()), copies));
  cache.commit(seq, ids, static_cast<int32_t>(ids.size()));
  return seq;
}

int32_t cached_tokens(KvCache& cache, const std::vector<int32_t>& ids) {
  SequenceKv seq;
  const int32_t found = cache.match(ids, kSharedRoot, {}, seq);
  cache.release(seq);
  return found;
}

TEST(KvCache, FullBlocksAreFoundByWhoeverBeginsTheSame) {
  KvCache cache(8);
  std::vector<int32_t> ids = numbers(3 * kTokens);
  SequenceKv first = computed(cache, ids);
  EXPECT_EQ(cached_tokens(cache, ids), 2 * kTokens);  // the last token is always computed
  ids.push_back(1);
  EXPECT_EQ(cached_tokens(cache, ids), 3 * kTokens);
  ids[kTokens + 5] += 1;
  EXPECT_EQ(cached_tokens(cache, ids), kTokens);
  ids[0] += 1;
  EXPECT_EQ(cached_tokens(cache, ids), 0);
  cache.release(first);
  EXPECT_EQ(cache.pool().num_cached(), 3);
  EXPECT_EQ(cache.pool().num_active(), 0);
}

TEST(KvCache, PartlyFilledBlocksAreFreedWithoutASession) {
  KvCache cache(8);
  SequenceKv seq = computed(cache, numbers(kTokens + 10));
  cache.release(seq);
  EXPECT_EQ(cache.pool().num_cached(), 1);
  EXPECT_EQ(cache.pool().num_free(), 7);
}

TEST(KvCache, SessionTailBringsTheWholeHistoryBack) {
  KvCache cache(8);
  std::vector<int32_t> ids = numbers(kTokens + 10);
  SequenceKv seq = computed(cache, ids);
  SessionTail tail;
  cache.release(seq, &tail);
  EXPECT_EQ(tail.num_tokens, kTokens + 10);
  ids.push_back(5);
  EXPECT_EQ(cache.match(ids, kSharedRoot, tail, seq), kTokens + 10);
  cache.release(seq, &tail);
  cache.drop_tail(tail);
  EXPECT_EQ(cache.pool().num_free(), 7);
  EXPECT_EQ(cache.match(ids, kSharedRoot, tail, seq), kTokens);
  cache.release(seq);
}

TEST(KvCache, EvictsTheDeepestBlockOfTheLongestUnusedHistoryFirst) {
  KvCache cache(6);
  std::vector<int32_t> old_ids = numbers(3 * kTokens, 0);
  std::vector<int32_t> new_ids = numbers(3 * kTokens, 5000);
  SequenceKv old_seq = computed(cache, old_ids);
  SequenceKv new_seq = computed(cache, new_ids);
  cache.release(old_seq);
  cache.release(new_seq);
  old_ids.push_back(1);
  new_ids.push_back(1);
  // Each needed block takes the end of the old history, then of the new one.
  SequenceKv other;
  std::vector<BlockCopy> copies;
  for (const auto& [old_left, new_left] :
       std::vector<std::pair<int32_t, int32_t>>{{2, 3}, {1, 3}, {0, 3}, {0, 2}, {0, 1}}) {
    const auto next = static_cast<int32_t>(other.blocks.size()) + 1;
    ASSERT_TRUE(cache.reserve(other, next * kTokens, copies));
    // The old history is looked at last, so that looking does not change what is oldest.
    const auto found = [&](const std::vector<int32_t>& ids) {
      int32_t blocks = 0;
      ContentKey key = kSharedRoot;
      for (; (blocks + 1) * kTokens < static_cast<int32_t>(ids.size()); ++blocks) {
        const BlockId block = cache.index().find(
            key, BlockTokens(ids.data() + static_cast<ptrdiff_t>(blocks) * kTokens, kTokens));
        if (block == kNoBlock) break;
        key = cache.index().key(block);
      }
      return blocks;
    };
    EXPECT_EQ(found(old_ids), old_left);
    EXPECT_EQ(found(new_ids), new_left);
  }
  EXPECT_EQ(cache.pool().num_evicted(), 5U);
  cache.release(other);
}

TEST(KvCache, ForksCopyOnlyThePartlyFilledBlockAndTheLastHolderNone) {
  KvCache cache(8);
  std::vector<int32_t> ids = numbers(kTokens + 3);
  SequenceKv parent = computed(cache, ids);
  SequenceKv child;
  cache.fork(parent, child);
  EXPECT_EQ(cache.pool().num_active(), 2);
  std::vector<BlockCopy> copies;
  EXPECT_EQ(cache.blocks_needed(parent, kTokens + 4), 1);
  ASSERT_TRUE(cache.reserve(parent, kTokens + 4, copies));
  ASSERT_EQ(copies.size(), 1U);
  EXPECT_EQ(copies[0].src, child.blocks[1]);
  EXPECT_EQ(copies[0].dst, parent.blocks[1]);
  ASSERT_TRUE(cache.reserve(child, kTokens + 4, copies));
  EXPECT_EQ(copies.size(), 1U);
  EXPECT_EQ(parent.blocks[0], child.blocks[0]);
  EXPECT_EQ(cache.num_copied(), 1U);
  cache.release(parent);
  cache.release(child);
}

// Continuation 0 ends and its tail is remembered; continuation 1 then fills that very block, so it
// is everybody's. The session's next turn must not write into it.
TEST(KvCache, ATailThatAnotherContinuationFilledIsNotWritten) {
  KvCache cache(8);
  std::vector<int32_t> prompt = numbers(10);
  SequenceKv first = computed(cache, prompt);
  SequenceKv second;
  cache.fork(first, second);
  SessionTail tail;
  cache.release(first, &tail);
  std::vector<int32_t> filled = numbers(kTokens);
  std::vector<BlockCopy> copies;
  ASSERT_TRUE(cache.reserve(second, kTokens, copies));
  cache.commit(second, filled, kTokens);
  cache.release(second);

  std::vector<int32_t> next = prompt;
  next.push_back(900);
  SequenceKv turn;
  cache.match(next, kSharedRoot, tail, turn);
  ASSERT_TRUE(cache.reserve(turn, 11, copies));
  filled.push_back(1);
  SequenceKv reader;
  ASSERT_EQ(cache.match(filled, kSharedRoot, {}, reader), kTokens);
  EXPECT_NE(reader.blocks[0], turn.blocks[0]);
  cache.release(reader);
  cache.release(turn);
}

// Two requests with the same beginning that run side by side end up on the same blocks.
TEST(KvCache, BlocksComputedTwiceAreHeldOnce) {
  KvCache cache(8);
  const std::vector<int32_t> ids = numbers(2 * kTokens + 1);
  std::vector<BlockCopy> copies;
  SequenceKv a;
  SequenceKv b;
  ASSERT_TRUE(cache.reserve(a, 2 * kTokens + 1, copies));
  ASSERT_TRUE(cache.reserve(b, 2 * kTokens + 1, copies));
  cache.commit(a, ids, 2 * kTokens + 1);
  cache.commit(b, ids, 2 * kTokens + 1);
  EXPECT_EQ(a.blocks[0], b.blocks[0]);
  EXPECT_EQ(a.blocks[1], b.blocks[1]);
  EXPECT_NE(a.blocks[2], b.blocks[2]);
  EXPECT_EQ(cache.pool().num_active(), 4);
  cache.release(a);
  cache.release(b);
  EXPECT_EQ(cache.pool().num_cached(), 2);
}

TEST(KvCache, PrivateRootsShareNothingAndAreDroppedWhole) {
  KvCache cache(8);
  const std::vector<int32_t> ids = numbers(2 * kTokens);
  std::vector<BlockCopy> copies;
  const ContentKey root = cache.new_private_root();
  SequenceKv mine;
  cache.match(ids, root, {}, mine);
  ASSERT_TRUE(cache.reserve(mine, 2 * kTokens, copies));
  cache.commit(mine, ids, 2 * kTokens);
  EXPECT_EQ(cached_tokens(cache, ids), 0);
  EXPECT_NE(cache.new_private_root(), root);
  cache.release(mine);
  EXPECT_EQ(cache.pool().num_cached(), 2);
  cache.drop_private(ids, root);
  EXPECT_EQ(cache.pool().num_free(), 8);
}

TEST(KvCache, NothingBeyondTheShareLimitIsOfferedOrReused) {
  KvCache cache(8);
  std::vector<int32_t> ids = numbers(3 * kTokens);
  SequenceKv seq;
  seq.share_limit = kTokens + 30;
  std::vector<BlockCopy> copies;
  cache.match(ids, kSharedRoot, {}, seq);
  ASSERT_TRUE(cache.reserve(seq, 3 * kTokens, copies));
  cache.commit(seq, ids, 3 * kTokens);
  SessionTail tail;
  cache.release(seq, &tail);
  EXPECT_EQ(tail.block, kNoBlock);
  EXPECT_EQ(cache.pool().num_cached(), 1);
  EXPECT_EQ(cached_tokens(cache, ids), kTokens);
}

// Random scripts from a fixed seed. The property tests (kv_property_test.cc) search further and
// shrink what they find.
class KvScripts : public ::testing::TestWithParam<KvWorld::Options> {};

TEST_P(KvScripts, RandomStepsKeepEveryPromise) {
  uint64_t reused = 0;
  uint64_t evicted = 0;
  uint64_t copied = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    std::mt19937 random(seed);
    std::vector<ScriptStep> script(120);
    for (ScriptStep& s : script) {
      s = {static_cast<uint16_t>(random()), static_cast<uint16_t>(random()),
           static_cast<uint16_t>(random()), static_cast<uint16_t>(random())};
    }
    KvWorld world(GetParam());
    ASSERT_EQ(world.run(script), "") << "seed " << seed;
    ASSERT_EQ(world.finish(), "") << "seed " << seed;
    reused += world.num_reused();
    evicted += world.cache().pool().num_evicted();
    copied += world.cache().num_copied();
  }
  EXPECT_GT(reused, 0U);
  EXPECT_GT(evicted, 0U);
  EXPECT_GT(copied, 0U);
}

INSTANTIATE_TEST_SUITE_P(
    Worlds, KvScripts,
    ::testing::Values(KvWorld::Options{}, KvWorld::Options{.num_blocks = 5},
                      KvWorld::Options{.num_blocks = 30},
                      KvWorld::Options{.num_blocks = 12, .private_roots = true},
                      KvWorld::Options{.num_blocks = 12, .share_limit = 2 * kTokens + 20}));

}  // namespace
}  // namespace treadle::kv
