#include "ops/philox.h"

#include <cstdint>
#include <set>

#include <gtest/gtest.h>

namespace treadle::ops {
namespace {

void expect_block(PhiloxBlock counter, uint32_t key0, uint32_t key1, PhiloxBlock expected) {
  const PhiloxBlock got = philox4x32_10(counter, key0, key1);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(got.v[i], expected.v[i]) << "word " << i;
}

// The known answers that are published with Random123 for philox4x32 with ten rounds.
TEST(Philox, KnownAnswers) {
  expect_block({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  const uint32_t ones = 0xffffffff;
  expect_block({{ones, ones, ones, ones}}, ones, ones,
               {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect_block({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
               {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(Philox, UniformIsInRangeAndEvenlySpread) {
  constexpr int kDraws = 100000;
  constexpr int kBins = 50;
  int bins[kBins] = {};
  for (uint32_t i = 0; i < kDraws; ++i) {
    const double u = sample_uniform(7, 0, i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++bins[static_cast<int>(u * kBins)];
  }
  double chi2 = 0.0;
  for (const int count : bins) {
    const double expected = double{kDraws} / kBins;
    chi2 += (count - expected) * (count - expected) / expected;
  }
  EXPECT_LT(chi2, 111.0);  // 49 degrees of freedom: one in a million
}

TEST(Philox, SeedStreamAndPositionAllMatter) {
  std::set<double> draws;
  for (const uint64_t seed : {uint64_t{1}, uint64_t{2}, uint64_t{1} << 32, ~uint64_t{0}}) {
    for (uint32_t stream = 0; stream < 8; ++stream) {
      for (uint32_t position = 0; position < 8; ++position) {
        draws.insert(sample_uniform(seed, stream, position));
      }
    }
  }
  EXPECT_EQ(draws.size(), 4U * 8U * 8U);
}

TEST(Philox, IsAConstantExpression) {
  static_assert(philox4x32_10({{0, 0, 0, 0}}, 0, 0).v[0] == 0x6627e8d5);
  static_assert(sample_uniform(1, 2, 3) == sample_uniform(1, 2, 3));
}

}  // namespace
}  // namespace treadle::ops
