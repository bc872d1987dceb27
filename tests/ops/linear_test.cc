// Linear layers against sums in double precision.
#include <algorithm>

#include <treadle/error.h>

#include "testing.h"

namespace treadle::ops::testing {
namespace {

struct Case {
  DType dtype = DType::kF16;
  int in = 64;
  std::vector<int> pieces = {64};  // rows of each
  bool bias = false;
  bool silu_mul = false;
  bool norm = false;
  bool add = false;
};

std::vector<double> doubles(const std::vector<float>& x) { return {x.begin(), x.end()}; }

/// x / sqrt(mean(x^2) + 1e-5) * weight of each row.
std::vector<double> normalised(const std::vector<float>& x, const std::vector<float>& weight,
                               int rows) {
  const size_t width = weight.size();
  std::vector<double> out;
  for (size_t r = 0; r < size_t(rows); ++r) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += double{x[r * width + i]} * x[r * width + i];
    const double scale = 1 / std::sqrt(squares / double(width) + 1e-5);
    for (size_t i = 0; i < width; ++i) out.push_back(x[r * width + i] * scale * weight[i]);
  }
  return out;
}

class LinearTest : public OpTest {
 protected:
  void check(const Case& c, const std::vector<int>& token_counts) {
    int out = 0;
    for (const int rows : c.pieces) out += rows;
    SCOPED_TRACE(std::string(dtype_name(c.dtype)) + " " + std::to_string(c.in) + " -> " +
                 std::to_string(out) + (c.bias ? " bias" : "") + (c.silu_mul ? " silu_mul" : "") +
                 (c.norm ? " norm" : "") + (c.add ? " add" : ""));
    std::vector<Tensor> tensors;
    std::vector<WeightPiece> pieces;
    std::vector<double> weight;
    for (const int rows : c.pieces) {
      tensors.emplace_back(c.dtype,
                           random_floats(size_t(rows) * size_t(c.in), 3U + uint32_t(rows)));
      for (size_t i = 0; i < tensors.back().size(); ++i) weight.push_back(tensors.back().get(i));
    }
    for (size_t i = 0; i < tensors.size(); ++i) {
      pieces.push_back({tensors[i].bytes.data(), c.dtype, c.pieces[i]});
    }
    const auto bias = random_floats(size_t(out), 9);
    const auto norm = random_floats(size_t(c.in), 10);
    LinearWeight w = ops.make_linear(ops.self, pieces.data(), int32_t(pieces.size()), c.in,
                                     c.bias ? bias.data() : nullptr, c.silu_mul);
    EXPECT_EQ(w.in_features, c.in);
    EXPECT_EQ(w.out_features, out);
    EXPECT_EQ(w.dtype, c.dtype);
    for (auto& t : tensors) t.bytes.assign(t.bytes.size(), '\xFF');  // the weight owns its copy

    const int columns = c.silu_mul ? out / 2 : out;
    const int64_t rows = (columns + 63) / 64 * 64 * (out / columns);  // in panels
    EXPECT_EQ(w.bytes, rows * (c.in * int64_t(dtype_size(c.dtype)) + (c.bias ? 4 : 0)));
    for (const int tokens : token_counts) {
      SCOPED_TRACE(std::to_string(tokens) + " tokens");
      const auto x = random_floats(size_t(tokens) * size_t(c.in), 4);
      const auto residual = random_floats(size_t(tokens) * size_t(columns), 5);
      const std::vector<double> input = c.norm ? normalised(x, norm, tokens) : doubles(x);
      std::vector<double> want;
      for (int t = 0; t < tokens; ++t) {
        auto project = [&](int row) {
          double sum = c.bias ? bias[size_t(row)] : 0.0;
          for (int k = 0; k < c.in; ++k) {
            sum += weight[size_t(row) * size_t(c.in) + size_t(k)] *
                   input[size_t(t) * size_t(c.in) + size_t(k)];
          }
          return sum;
        };
        for (int i = 0; i < columns; ++i) {
          const double gate = project(i);
          want.push_back(c.silu_mul ? gate / (1 + std::exp(-gate)) * project(i + columns) : gate);
          if (c.add) want.back() += residual[size_t(t) * size_t(columns) + size_t(i)];
        }
      }
      // One row more than the result: nothing may be written past the end.
      std::vector<float> y(want.size() + size_t(columns), kPoison);
      if (c.add) std::copy(residual.begin(), residual.end(), y.begin());
      LinearParams p;
      p.x = x.data();
      p.weight = &w;
      p.y = y.data();
      p.num_tokens = tokens;
      p.silu_mul = c.silu_mul;
      p.norm = c.norm ? norm.data() : nullptr;
      p.norm_eps = 1e-5F;
      p.add = c.add;
      ops.linear(ops.self, p, {});
      for (size_t i = want.size(); i < y.size(); ++i) ASSERT_TRUE(std::isnan(y[i]));
      y.resize(want.size());
      const double error = 4e-6 * c.in;
      expect_near(y, want, c.silu_mul ? 1e-4 : 1e-5, c.silu_mul ? 10 * error : error);

      std::vector<float> again = c.add ? residual : std::vector<float>(y.size(), kPoison);
      p.y = again.data();
      ops.linear(ops.self, p, {});
      expect_same_bits(again, y);
    }
    ops.release_linear(ops.self, &w);
    EXPECT_EQ(w.data, nullptr);
  }
};

TEST_P(LinearTest, Dtypes) {
  for (const DType dtype : kFloatTypes) {
    check({.dtype = dtype, .in = 96, .pieces = {200}}, {1, 3, 20});
    check({.dtype = dtype, .in = 96, .pieces = {70, 70}, .bias = true, .silu_mul = true},
          {1, 2, 9});
  }
}

TEST_P(LinearTest, EveryTileHeight) {
  std::vector<int> counts;
  for (int t = 0; t <= 30; ++t) counts.push_back(t);
  check({.in = 33, .pieces = {64}}, counts);
}

TEST_P(LinearTest, ManyTokens) { check({.in = 40, .pieces = {130}}, {50, 126, 127, 300}); }

TEST_P(LinearTest, RaggedSizes) {
  for (const int in : {1, 2, 15, 17, 100}) {
    for (const int out : {1, 2, 63, 64, 65, 127, 129, 191}) {
      check({.in = in, .pieces = {out}, .bias = true}, {1, 7});
      check({.in = in, .pieces = {out, out}, .silu_mul = true}, {1, 7});
    }
  }
}

TEST_P(LinearTest, NormalisesItsInput) {
  for (const int in : {1, 3, 16, 17, 63, 64, 100, 256, 896}) {
    check({.in = in, .pieces = {70}, .norm = true}, {1, 2, 150});
  }
  check({.in = 100, .pieces = {40, 40}, .bias = true, .silu_mul = true, .norm = true}, {1, 9});
}

TEST_P(LinearTest, AddsToTheOutput) {
  for (const int out : {1, 2, 63, 64, 65, 127, 129, 191}) {
    check({.in = 50, .pieces = {out}, .add = true}, {1, 7, 150});
    check({.in = 50, .pieces = {out}, .bias = true, .norm = true, .add = true}, {1, 7});
  }
  check({.in = 2500, .pieces = {600}, .add = true}, {1, 8});
}

// The decoder's products run over the same scratch one after the other.
TEST_P(LinearTest, AFewTokensAfterMany) {
  const int in = 40;
  const Tensor weight(DType::kF32, random_floats(size_t(in) * 30, 1));
  const auto x = random_floats(size_t(in) * 200, 2);
  const auto norm = random_floats(size_t(in), 3);
  const WeightPiece piece{weight.bytes.data(), DType::kF32, 30};
  LinearWeight w = ops.make_linear(ops.self, &piece, 1, in, nullptr, false);
  std::vector<float> y(size_t{30} * 200);
  LinearParams p{.x = x.data(), .weight = &w, .norm = norm.data(), .y = y.data()};
  p.num_tokens = 200;
  ops.linear(ops.self, p, {});
  std::vector<float> few(size_t{30} * 3);
  p.y = few.data();
  p.num_tokens = 3;
  ops.linear(ops.self, p, {});
  expect_same_bits(few, {y.begin(), y.begin() + long(few.size())});
  ops.release_linear(ops.self, &w);
}

TEST_P(LinearTest, DeeperThanASlice) {
  check({.in = 2500, .pieces = {66}}, {1, 8});
  check({.dtype = DType::kF32, .in = 1025, .pieces = {20, 20}, .silu_mul = true}, {1, 8});
}

TEST_P(LinearTest, PiecesAreStacked) {
  check({.in = 48, .pieces = {100, 30, 30}, .bias = true}, {1, 5});
  check({.in = 48, .pieces = {1, 1, 1, 5, 90, 2}}, {2});
  check({.in = 48, .pieces = {50, 10, 60}, .silu_mul = true}, {2});
}

TEST_P(LinearTest, EnoughWorkForAllThreads) {
  check({.in = 256, .pieces = {512}}, {1, 2, 64});
  check({.in = 256, .pieces = {300, 300}, .silu_mul = true}, {1, 64});
}

TEST_P(LinearTest, PiecesOfDifferentTypesAreRefused) {
  const std::vector<float> data(64);
  const WeightPiece pieces[] = {{data.data(), DType::kF32, 1}, {data.data(), DType::kF16, 1}};
  EXPECT_THROW(ops.make_linear(ops.self, pieces, 2, 8, nullptr, false), Error);
  const WeightPiece integers = {data.data(), DType::kI8, 1};
  EXPECT_THROW(ops.make_linear(ops.self, &integers, 1, 8, nullptr, false), Error);
}

TREADLE_FOR_ALL_VARIANTS(LinearTest);

}  // namespace
}  // namespace treadle::ops::testing
