// What the QKV operation writes with int8 KV, read back in double precision.
#include <algorithm>

#include "testing.h"

namespace treadle::ops::testing {
namespace {

class KvInt8Test : public OpTest {
 protected:
  static constexpr int kDim = 20;  // whole vectors and a rest, whatever their width

  /// Writes a token for each row of kDim values, as K and as V.
  void write(const std::vector<float>& rows) {
    tokens_ = static_cast<int>(rows.size()) / kDim;
    paged_.set_step({{tokens_, tokens_}}, 4, 5);
    std::vector<float> qkv;
    for (int t = 0; t < tokens_; ++t) {
      const auto row = rows.begin() + long(t) * kDim;
      for (int copy = 0; copy < 3; ++copy) qkv.insert(qkv.end(), row, row + kDim);
    }
    std::vector<float> q(rows.size());
    QkvParams p;
    p.qkv = qkv.data();
    p.q_out = q.data();
    p.heads = p.kv_heads = 1;
    p.head_dim = kDim;
    p.kv = paged_.kv;
    p.batch = paged_.batch;
    ops.qkv(ops.self, p, {});
  }

  /// |f - f'| <= scale / 2, and the rounding of the parameters to float.
  void expect_kept(const std::vector<float>& rows) {
    write(rows);
    for (int t = 0; t < tokens_; ++t) {
      const float* row = rows.data() + long(t) * kDim;
      const auto [least, largest] = std::minmax_element(row, row + kDim);
      const double scale = (double{*largest} - double{*least}) / 255.0;
      const double size = std::max(std::fabs(double{*least}), std::fabs(double{*largest}));
      for (const int part : {0, 1}) {
        ASSERT_NEAR(paged_.scale(0, part, 0, 0, t).scale, scale, 1e-6 * scale + 1e-44);
        for (int d = 0; d < kDim; ++d) {
          ASSERT_NEAR(paged_.value(0, part, 0, 0, t, d), row[d], scale / 2 + 5e-7 * size + 1e-42)
              << "token " << t << " part " << part << " dim " << d;
        }
      }
    }
  }

  static std::vector<float> row_of(float value) { return std::vector<float>(kDim, value); }

  PagedBatch paged_{DType::kI8, 1, 1, kDim, 6};
  int tokens_ = 0;
};

TEST_P(KvInt8Test, HalfAStepAtMost) {
  for (const float size : {1e-30F, 1e-6F, 1.0F, 300.0F, 1e30F}) {
    expect_kept(random_floats(size_t{150} * kDim, 8, size));
  }
}

TEST_P(KvInt8Test, ValuesFarFromZero) {
  auto rows = random_floats(size_t{70} * kDim, 9, 0.01F);
  for (float& value : rows) value += 1000.0F;
  expect_kept(rows);
}

TEST_P(KvInt8Test, EqualValuesAreExact) {
  for (const float value : {0.0F, 1.0F, -0.3F, 1e-38F, 3e38F, -3.4e38F}) {
    write(row_of(value));
    for (const int part : {0, 1}) {
      for (int d = 0; d < kDim; ++d) ASSERT_EQ(paged_.value(0, part, 0, 0, 0, d), value);
    }
  }
}

TEST_P(KvInt8Test, ExtremeValues) {
  auto row = row_of(0.0F);
  row[3] = std::numeric_limits<float>::max();
  row[19] = -row[3];
  expect_kept(row);
  row = row_of(1.0F);
  row[0] = std::nextafter(1.0F, 2.0F);
  expect_kept(row);
  row = row_of(0.0F);
  row[7] = std::numeric_limits<float>::denorm_min();  // a step of zero
  expect_kept(row);
  row[7] = 1e-40F;
  expect_kept(row);
}

// As visible as with 16 bits, and no other token's.
TEST_P(KvInt8Test, WhatIsNotFiniteShows) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {kPoison, infinity, -infinity}) {
    for (const size_t at : {0, 6, 19}) {
      auto rows = random_floats(size_t{3} * kDim, 3);
      rows[size_t{kDim} + at] = bad;
      write(rows);
      for (const int part : {0, 1}) {
        for (int d = 0; d < kDim; ++d) {
          ASSERT_TRUE(std::isnan(paged_.value(0, part, 0, 0, 1, d)));
          ASSERT_TRUE(std::isfinite(paged_.value(0, part, 0, 0, 0, d)));
          ASSERT_TRUE(std::isfinite(paged_.value(0, part, 0, 0, 2, d)));
        }
      }
    }
  }
}

// Constant parameters: q and what lies beyond the range, by the formula in double precision, for
// each head of K and of V its own. They stay as they are, and so does all that is not a token's.
TEST_P(KvInt8Test, StaticParameters) {
  constexpr int kHeads = 2;
  constexpr int kLayer = 1;
  const KvScale given[2][kHeads] = {{{0.01F, 0.0F}, {0.5F, -3.0F}},
                                    {{1e-3F, 0.25F}, {2.0F / 127, 0.0F}}};
  PagedBatch paged(DType::kI8, 3, kHeads, kDim, 6, true);
  for (const int part : {0, 1}) {
    for (int h = 0; h < kHeads; ++h) {
      std::fill_n(paged.scales(0, kLayer, part, h), kBlockTokens, given[part][h]);
    }
  }
  const std::vector<char> before = paged.pool.bytes;
  paged.set_step({{70, 70}, {1, 1}}, 3, 5);
  const auto tokens = size_t(paged.batch.num_tokens);
  constexpr size_t kFeatures = size_t{1 + 1 + 2 * kHeads} * kDim;
  auto qkv = random_floats(tokens * kFeatures, 11, 2.0F);
  qkv[kFeatures * 9 + 2 * kDim + 4] = kPoison;  // token 9, head 0 of K
  std::vector<float> q(tokens * 2 * kDim);
  QkvParams p;
  p.qkv = qkv.data();
  p.q_out = q.data();
  p.heads = 2;
  p.kv_heads = kHeads;
  p.head_dim = kDim;
  p.layer = kLayer;
  p.kv = paged.kv;
  p.batch = paged.batch;
  ops.qkv(ops.self, p, {});
  const auto first_scale = paged.pool.bytes.begin() + long(6 * paged.kv.block_bytes());
  ASSERT_TRUE(std::equal(first_scale, paged.pool.bytes.end(),
                         before.begin() + long(6 * paged.kv.block_bytes())));
  int beyond = 0;
  for (size_t t = 0; t < tokens; ++t) {
    const int sequence = paged.token_sequence[t];
    const int position = paged.positions[t];
    for (const int part : {0, 1}) {
      for (int h = 0; h < kHeads; ++h) {
        const KvScale want = given[part][h];
        const float* row = qkv.data() + t * kFeatures + size_t(2 + part * kHeads + h) * kDim;
        for (int d = 0; d < kDim; ++d) {
          if (std::isnan(row[d])) continue;  // becomes anything
          const double exact = (double{row[d]} - want.zero) / want.scale;
          const double bounded = std::clamp(exact, -128.0, 127.0);
          beyond += bounded == exact ? 0 : 1;
          const double got = paged.pool.get(paged.index(kLayer, part, h, sequence, position, d));
          ASSERT_NEAR(got, bounded, 0.5001) << "token " << t << " part " << part << " head " << h;
        }
      }
    }
  }
  EXPECT_GT(beyond, 100);
}

TREADLE_FOR_ALL_VARIANTS(KvInt8Test);

}  // namespace
}  // namespace treadle::ops::testing
