// The thread pool: every index once, work visible to the caller, many regions, idle between them.
#include "ops/cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace treadle::ops::cpu {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, EveryIndexOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.num_threads(), GetParam());
  for (const int64_t count : {0, 1, 2, 3, 7, 64, 1000, 20000}) {
    std::vector<int> calls(static_cast<size_t>(count));  // not atomic: each has one writer
    std::atomic<bool> bad_thread = false;
    pool.parallel_for(count, [&](int64_t i, int thread) {
      ++calls[static_cast<size_t>(i)];
      if (thread < 0 || thread >= GetParam()) bad_thread = true;
    });
    EXPECT_FALSE(bad_thread);
    for (const int c : calls) ASSERT_EQ(c, 1);
  }
}

TEST_P(ThreadPoolTest, RangesCoverEverything) {
  ThreadPool pool(GetParam());
  for (const int64_t count : {0, 1, 5, 100, 1001}) {
    for (const int64_t grain : {1, 3, 1000}) {
      std::vector<int> calls(static_cast<size_t>(count));
      pool.parallel_ranges(count, grain, [&](int64_t begin, int64_t end, int /*thread*/) {
        EXPECT_LT(begin, end);
        for (int64_t i = begin; i < end; ++i) ++calls[static_cast<size_t>(i)];
      });
      for (const int c : calls) ASSERT_EQ(c, 1);
    }
  }
}

// Each region reads what the one before wrote, whichever thread wrote it.
TEST_P(ThreadPoolTest, RegionsFollowEachOther) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> a(100, 1), b(100);
  for (int round = 0; round < 2000; ++round) {
    pool.parallel_for(100, [&](int64_t i, int) {
      b[static_cast<size_t>(i)] = a[static_cast<size_t>(99 - i)] + 1;
    });
    a.swap(b);
  }
  for (const int64_t value : a) EXPECT_EQ(value, 2001);
}

TEST_P(ThreadPoolTest, WorkersWakeAfterSleeping) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 30; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 3));
    std::atomic<int> calls = 0;
    pool.parallel_for(50, [&](int64_t, int) { ++calls; });
    EXPECT_EQ(calls, 50);
  }
}

// A scratch slot is never used by two calls at a time.
TEST_P(ThreadPoolTest, ThreadNumbersAreExclusive) {
  ThreadPool pool(GetParam());
  std::vector<std::atomic<int>> users(static_cast<size_t>(GetParam()));
  std::atomic<bool> shared = false;
  for (int round = 0; round < 200; ++round) {
    pool.parallel_for(40, [&](int64_t, int thread) {
      if (users[static_cast<size_t>(thread)].fetch_add(1) != 0) shared = true;
      users[static_cast<size_t>(thread)].fetch_sub(1);
    });
  }
  EXPECT_FALSE(shared);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadPoolTest, ::testing::Values(1, 2, 3, 8));

TEST(ThreadPool, DefaultsToTheCoresOfTheProcess) {
  EXPECT_GE(available_threads(), 1);
  EXPECT_EQ(ThreadPool(0).num_threads(), available_threads());
}

TEST(ThreadPool, ManyPoolsComeAndGo) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(3);
    std::atomic<int> calls = 0;
    if (i % 2 == 0) pool.parallel_for(5, [&](int64_t, int) { ++calls; });
    EXPECT_EQ(calls, i % 2 == 0 ? 5 : 0);
  }
}

}  // namespace
}  // namespace treadle::ops::cpu
