// Linear layers of 4-bit weights against sums in double precision.
#include <algorithm>

#include <treadle/error.h>

#include "testing.h"

namespace treadle::ops::testing {
namespace {

struct Case {
  int in = 64;
  int group = 32;
  std::vector<int> pieces = {64};  // rows of each
  bool group_index = false;        // groups of scattered inputs
  bool bias = false;
  bool silu_mul = false;
  bool add = false;
};

/// One piece and what it stands for.
struct Piece {
  std::vector<uint8_t> q;
  std::vector<float> scales;
  std::vector<uint8_t> zeros;
  Int4Groups groups;
};

class Int4Test : public OpTest {
 protected:
  void check(const Case& c, const std::vector<int>& token_counts) {
    SCOPED_TRACE(std::to_string(c.in) + " in groups of " + std::to_string(c.group));
    const int groups = c.in / c.group;
    std::vector<int32_t> group_of;
    for (int k = 0; k < c.in; ++k) group_of.push_back(c.group_index ? k % groups : k / c.group);
    std::vector<Piece> made(c.pieces.size());
    std::vector<WeightPiece> pieces;
    std::vector<double> weight;
    int out = 0;
    for (size_t i = 0; i < made.size(); ++i) {
      const int rows = c.pieces[i];
      out += rows;
      Piece& p = made[i];
      const auto noise = random_floats(size_t(rows) * size_t(c.in), 3U + uint32_t(i));
      p.q.resize(noise.size() / 2);
      for (int n = 0; n < rows; ++n) {
        for (int g = 0; g < groups; ++g) {
          p.scales.push_back(float((n * 7 + g * 3) % 11 + 1) / 32);
          p.zeros.push_back(uint8_t((n * 5 + g) % 17));
        }
        for (int k = 0; k < c.in; ++k) {
          const size_t at = size_t(n) * size_t(c.in) + size_t(k);
          const int q = int(std::abs(noise[at]) * 1000) % 16;
          p.q[at / 2] = uint8_t(p.q[at / 2] | q << (k % 2 * 4));
          const size_t g = size_t(n * groups + group_of[size_t(k)]);
          weight.push_back((q - int(p.zeros[g])) * double{p.scales[g]});
        }
      }
      p.groups = {.scales = p.scales.data(),
                  .zeros = p.zeros.data(),
                  .group_of = c.group_index ? group_of.data() : nullptr,
                  .group_size = c.group};
      pieces.push_back({.data = p.q.data(), .dtype = DType::kU8, .rows = rows, .int4 = &p.groups});
    }
    const auto bias = random_floats(size_t(out), 9);
    LinearWeight w = ops.make_linear(ops.self, pieces.data(), int32_t(pieces.size()), c.in,
                                     c.bias ? bias.data() : nullptr, c.silu_mul);
    EXPECT_EQ(w.format, WeightFormat::kInt4Group);
    EXPECT_EQ(w.out_features, out);
    made.clear();  // the weight owns its copy

    const int columns = c.silu_mul ? out / 2 : out;
    // In panels of 64 rows: half a byte for each number, a scale and a zero for each group.
    const int64_t rows = (columns + 63) / 64 * 64 * (out / columns);
    const int64_t row_bytes = c.in / 2 + groups * 8 + (c.bias ? 4 : 0);
    EXPECT_EQ(w.bytes, rows * row_bytes + (c.group_index ? c.in * 4 : 0));
    std::vector<float> first;
    for (const int tokens : token_counts) {
      SCOPED_TRACE(std::to_string(tokens) + " tokens");
      const auto x = random_floats(size_t(tokens) * size_t(c.in), 4);
      const auto residual = random_floats(size_t(tokens) * size_t(columns), 5);
      std::vector<double> want;
      for (int t = 0; t < tokens; ++t) {
        auto project = [&](int row) {
          double sum = c.bias ? bias[size_t(row)] : 0.0;
          for (int k = 0; k < c.in; ++k) {
            sum += weight[size_t(row) * size_t(c.in) + size_t(k)] *
                   double{x[size_t(t) * size_t(c.in) + size_t(k)]};
          }
          return sum;
        };
        for (int i = 0; i < columns; ++i) {
          const double gate = project(i);
          want.push_back(c.silu_mul ? gate / (1 + std::exp(-gate)) * project(i + columns) : gate);
          if (c.add) want.back() += double{residual[size_t(t) * size_t(columns) + size_t(i)]};
        }
      }
      std::vector<float> y = c.add ? residual : std::vector<float>(want.size(), kPoison);
      LinearParams p;
      p.x = x.data();
      p.weight = &w;
      p.y = y.data();
      p.num_tokens = tokens;
      p.silu_mul = c.silu_mul;
      p.add = c.add;
      ops.linear(ops.self, p, {});
      const double error = 2e-5 * c.in;
      expect_near(y, want, 1e-4, c.silu_mul ? 100 * error : error);
      // The first token's result is the same in every batch.
      y.resize(size_t(columns));
      if (first.empty()) first = y;
      if (!c.add) expect_same_bits(y, first);
    }
    ops.release_linear(ops.self, &w);
    EXPECT_EQ(w.data, nullptr);
    EXPECT_EQ(w.group_of, nullptr);
  }
};

TEST_P(Int4Test, GroupSizes) {
  for (const int group : {32, 64, 128, 256}) {
    for (const bool index : {false, true}) {
      check({.in = 256, .group = group, .pieces = {100}, .group_index = index, .bias = true},
            {1, 2, 7, 20, 130});
    }
  }
}

TEST_P(Int4Test, RaggedSizes) {
  for (const int out : {1, 31, 33, 63, 64, 65, 129, 191}) {
    check({.in = 8, .group = 8, .pieces = {out}}, {1, 7});
    check({.in = 96, .pieces = {out, out}, .silu_mul = true}, {1, 7});
    check({.in = 96, .pieces = {out}, .add = true}, {1, 9});
  }
}

TEST_P(Int4Test, PiecesAreStackedAndDeeperThanASlice) {
  check({.in = 2560, .group = 128, .pieces = {60, 20, 20}, .bias = true}, {1, 8});
  check({.in = 1088, .group = 1088, .pieces = {40, 40}, .silu_mul = true}, {1, 8});
}

TEST_P(Int4Test, PiecesMustAgree) {
  const std::vector<uint8_t> q(64);
  const std::vector<float> scales(16);
  const std::vector<uint8_t> zeros(16);
  const Int4Groups a{.scales = scales.data(), .zeros = zeros.data(), .group_size = 8};
  const Int4Groups b{.scales = scales.data(), .zeros = zeros.data(), .group_size = 16};
  const WeightPiece pieces[] = {{.data = q.data(), .dtype = DType::kU8, .rows = 1, .int4 = &a},
                                {.data = q.data(), .dtype = DType::kU8, .rows = 1, .int4 = &b}};
  EXPECT_THROW(ops.make_linear(ops.self, pieces, 2, 16, nullptr, false), Error);
  EXPECT_THROW(ops.make_linear(ops.self, pieces, 1, 12, nullptr, false), Error);
}

TREADLE_FOR_ALL_VARIANTS(Int4Test);

}  // namespace
}  // namespace treadle::ops::testing
