// Token-wise operations: embedding, rotary angles, the QKV split, gather, block copies.
#include <algorithm>

#include "testing.h"

namespace treadle::ops::testing {
namespace {

class TokensTest : public OpTest {};

TEST_P(TokensTest, EmbedFromTableAndFromTiedHead) {
  for (const DType dtype : kFloatTypes) {
    for (const int hidden : {1, 8, 24, 100, 256}) {
      const int vocab = 150;
      const Tensor table(dtype, random_floats(size_t(vocab) * size_t(hidden), 2));
      const WeightPiece piece{table.bytes.data(), dtype, vocab};
      LinearWeight head = ops.make_linear(ops.self, &piece, 1, hidden, nullptr, false);
      std::vector<int32_t> ids = {0, 149, 63, 64, 7, 7};
      while (ids.size() < 200) ids.push_back(int32_t(ids.size() * 37 % vocab));
      std::vector<float> want;
      for (const int32_t id : ids) {
        for (int i = 0; i < hidden; ++i) want.push_back(table.get(size_t(id * hidden + i)));
      }
      for (const bool tied : {false, true}) {
        std::vector<float> out(want.size(), kPoison);
        EmbedParams p;
        p.ids = ids.data();
        p.table = tied ? nullptr : table.bytes.data();
        p.tied = &head;
        p.table_dtype = dtype;
        p.out = out.data();
        p.num_tokens = int32_t(ids.size());
        p.hidden = hidden;
        ops.embed(ops.self, p, {});
        expect_same_bits(out, want);
      }
      ops.release_linear(ops.self, &head);
    }
  }
}

TEST_P(TokensTest, RopeAngles) {
  const int dim = 20;
  std::vector<float> inv_freq;
  for (int i = 0; i < dim / 2; ++i) inv_freq.push_back(std::pow(10000.0F, -2.0F * float(i) / dim));
  std::vector<int32_t> positions = {0, 1, 63, 1000, 100000};
  while (positions.size() < 40) positions.push_back(int32_t(positions.size()));
  std::vector<double> want;
  for (const int32_t pos : positions) {
    for (int i = 0; i < dim / 2; ++i) {
      const double angle = float(pos) * inv_freq[size_t(i)];
      want.push_back(std::cos(angle) * 1.25);
      want.push_back(std::sin(angle) * 1.25);
    }
  }
  std::vector<float> out(want.size(), kPoison);
  RopeParams p;
  p.positions = positions.data();
  p.inv_freq = inv_freq.data();
  p.cos_sin = out.data();
  p.num_tokens = int32_t(positions.size());
  p.rotary_dim = dim;
  p.attention_factor = 1.25F;
  ops.rope(ops.self, p, {});
  expect_near(out, want, 1e-6, 1e-6);
}

// Below the trained length the given frequencies are used, above it those of the stretched base.
TEST_P(TokensTest, RopeDynamicNtk) {
  const int dim = 16;
  const double base = 10000.0;
  const double factor = 2.5;
  const int original = 128;
  std::vector<float> inv_freq;
  for (int i = 0; i < dim / 2; ++i) inv_freq.push_back(float(std::pow(base, -2.0 * i / dim)));
  const std::vector<int32_t> positions = {5, 127, 128, 300, 10};
  const std::vector<int32_t> lengths = {6, 128, 129, 1000, 4096};
  std::vector<double> want;
  for (size_t t = 0; t < positions.size(); ++t) {
    const double length = std::max(lengths[t], original);
    const double stretched =
        base * std::pow(factor * length / original - (factor - 1), dim / (dim - 2.0));
    for (int i = 0; i < dim / 2; ++i) {
      const double angle = positions[t] * std::pow(stretched, -2.0 * i / dim);
      want.push_back(std::cos(angle));
      want.push_back(std::sin(angle));
    }
  }
  std::vector<float> out(want.size(), kPoison);
  RopeParams p;
  p.positions = positions.data();
  p.rope_len = lengths.data();
  p.inv_freq = inv_freq.data();
  p.cos_sin = out.data();
  p.num_tokens = int32_t(positions.size());
  p.rotary_dim = dim;
  p.dynamic_base = base;
  p.dynamic_factor = factor;
  p.original_len = original;
  ops.rope(ops.self, p, {});
  expect_near(out, want, 2e-5, 2e-5);
}

TEST_P(TokensTest, Gather) {
  for (const int hidden : {1, 24, 300}) {
    const auto in = random_floats(size_t(hidden) * 90, 8);
    std::vector<int32_t> rows = {89, 0, 5, 5};
    while (rows.size() < 100) rows.push_back(int32_t(rows.size() * 31 % 90));
    std::vector<float> want;
    for (const int32_t r : rows) {
      want.insert(want.end(), in.begin() + r * hidden, in.begin() + (r + 1) * hidden);
    }
    std::vector<float> out(want.size(), kPoison);
    GatherParams p;
    p.in = in.data();
    p.rows = rows.data();
    p.out = out.data();
    p.num_rows = int32_t(rows.size());
    p.hidden = hidden;
    ops.gather(ops.self, p, {});
    expect_same_bits(out, want);
  }
}

class CopyBlockTest : public OpTest {
 protected:
  void check(DType dtype);
};

void CopyBlockTest::check(DType dtype) {
  PagedBatch paged(dtype, 3, 2, 32, 5);
  for (size_t i = 0; i < paged.pool.bytes.size(); ++i) {
    paged.pool.bytes[i] = static_cast<char>(i * 7 + i / 1000);
  }
  const auto before = paged.pool.bytes;
  CopyBlockParams p;
  p.kv = paged.kv;
  p.src = 1;
  p.dst = 3;
  ops.copy_block(ops.self, p, {});
  const size_t bytes = paged.kv.block_bytes();
  for (size_t b = 0; b < 5; ++b) {
    const size_t source = b == 3 ? 1 : b;
    EXPECT_EQ(std::memcmp(&paged.pool.bytes[b * bytes], &before[source * bytes], bytes), 0) << b;
  }
}

TEST_P(CopyBlockTest, CopiesAllOfIt) {
  for (const DType dtype : {DType::kF16, DType::kI8}) check(dtype);
}

TREADLE_FOR_ALL_VARIANTS(CopyBlockTest);

TREADLE_FOR_ALL_VARIANTS(TokensTest);

}  // namespace
}  // namespace treadle::ops::testing
