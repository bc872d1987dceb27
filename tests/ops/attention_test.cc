// Paged attention against softmax written out in double precision.
#include <algorithm>

#include "testing.h"

namespace treadle::ops::testing {
namespace {

struct Case {
  DType dtype = DType::kF16;
  bool static_scales = false;  // of int8
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 64;
  int window = 0;
  std::vector<SequenceShape> shapes;
};

class AttentionTest : public OpTest {
 protected:
  static void fill_keys(const Case& c, PagedBatch* paged) {
    const auto values = random_floats(4096, 7);
    size_t next = 0;
    for (int s = 0; s < paged->batch.num_sequences; ++s) {
      for (int pos = 0; pos < c.shapes[size_t(s)].context; ++pos) {
        for (int h = 0; h < c.kv_heads; ++h) {
          for (int d = 0; d < c.head_dim; ++d) {
            for (const int part : {0, 1}) {
              next = (next * 5 + 3) % 4093;
              const bool int8 = c.dtype == DType::kI8;
              const float value = int8 ? std::round(40.0F * values[next]) : values[next];
              paged->pool.set(paged->index(1, part, h, s, pos, d),
                              std::clamp(value, -128.0F, 127.0F));
            }
          }
          if (c.dtype != DType::kI8) continue;
          for (const int part : {0, 1}) {
            const int of = c.static_scales ? 2 * h + part : pos;
            paged->scale(1, part, h, s, pos) = {0.01F + 0.0003F * float(of % 50),
                                                0.1F * float(of % 7 - 3)};
          }
        }
      }
    }
  }

  /// K (part 0) or V (part 1) of one head: [context][head_dim].
  static std::vector<double> unpack(const Case& c, PagedBatch& paged, int part, int head,
                                    int sequence) {
    std::vector<double> values;
    for (int pos = 0; pos < c.shapes[size_t(sequence)].context; ++pos) {
      for (int d = 0; d < c.head_dim; ++d) {
        values.push_back(paged.value(1, part, head, sequence, pos, d));
      }
    }
    return values;
  }

  /// The result of one query row against the keys [first, last].
  static void attend(const float* q, const double* keys, const double* values, int first, int last,
                     int dim, double scale, double* out) {
    std::vector<double> weights;
    double largest = -std::numeric_limits<double>::infinity();
    for (int key = first; key <= last; ++key) {
      double score = 0;
      for (int d = 0; d < dim; ++d) score += q[d] * keys[key * dim + d];
      weights.push_back(score * scale);
      largest = std::max(largest, weights.back());
    }
    double sum = 0;
    for (double& w : weights) sum += w = std::exp(w - largest);
    for (int key = first; key <= last; ++key) {
      const double weight = weights[size_t(key - first)] / sum;
      for (int d = 0; d < dim; ++d) out[d] += weight * values[key * dim + d];
    }
  }

  static std::vector<double> reference(const Case& c, PagedBatch& paged,
                                       const std::vector<float>& q, float scale) {
    std::vector<double> out(q.size());
    for (int s = 0; s < paged.batch.num_sequences; ++s) {
      for (int head = 0; head < c.kv_heads; ++head) {
        const auto keys = unpack(c, paged, 0, head, s);
        const auto values = unpack(c, paged, 1, head, s);
        for (int t = paged.query_begin[size_t(s)]; t < paged.query_begin[size_t(s) + 1]; ++t) {
          const int pos = paged.positions[size_t(t)];
          const int first = c.window > 0 ? std::max(0, pos - c.window + 1) : 0;
          const int group = c.heads / c.kv_heads;
          for (int h = head * group; h < (head + 1) * group; ++h) {
            const size_t row = size_t(t * c.heads + h) * size_t(c.head_dim);
            attend(&q[row], keys.data(), values.data(), first, pos, c.head_dim, scale, &out[row]);
          }
        }
      }
    }
    return out;
  }

  void check(const Case& c) {
    SCOPED_TRACE(std::string(dtype_name(c.dtype)) + " heads " + std::to_string(c.heads) + "/" +
                 std::to_string(c.kv_heads) + " of " + std::to_string(c.head_dim) + " window " +
                 std::to_string(c.window));
    int longest = 0;
    for (const auto& shape : c.shapes) longest = std::max(longest, shape.context);
    const int blocks = (longest + kBlockTokens - 1) / kBlockTokens + 1;
    PagedBatch paged(c.dtype, 2, c.kv_heads, c.head_dim, blocks * int(c.shapes.size()) + 3,
                     c.static_scales);
    paged.set_step(c.shapes, blocks, 11);
    fill_keys(c, &paged);
    const size_t size = size_t(paged.batch.num_tokens) * size_t(c.heads * c.head_dim);
    const auto q = random_floats(size, 5);
    std::vector<float> out(size, kPoison);
    AttentionParams p;
    p.q = q.data();
    p.out = out.data();
    p.scale = 1.0F / std::sqrt(static_cast<float>(c.head_dim));
    p.window = c.window;
    p.heads = c.heads;
    p.kv_heads = c.kv_heads;
    p.head_dim = c.head_dim;
    p.layer = 1;
    p.kv = paged.kv;
    p.batch = paged.batch;
    ops.attention(ops.self, p, {});
    expect_near(out, reference(c, paged, q, p.scale), 2e-5, 2e-5);

    std::vector<float> again(size, kPoison);
    p.out = again.data();
    ops.attention(ops.self, p, {});
    expect_same_bits(again, out);
  }
};

const std::vector<SequenceShape> kMixed = {{1, 1},   {63, 1},  {64, 1},   {65, 1}, {200, 1},
                                           {70, 70}, {130, 3}, {129, 65}, {5, 2}};

TEST_P(AttentionTest, MixedBatchInEveryDtype) {
  for (const DType dtype : kFloatTypes) check({.dtype = dtype, .shapes = kMixed});
  check({.dtype = DType::kI8, .shapes = kMixed});
  check({.dtype = DType::kI8, .static_scales = true, .shapes = kMixed});
}

TEST_P(AttentionTest, HeadDims) {
  for (const int dim : {4, 8, 20, 32, 64, 80, 96, 100, 128, 256}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8}) {
      check({.dtype = dtype, .head_dim = dim, .shapes = {{67, 1}, {40, 40}}});
    }
  }
}

TEST_P(AttentionTest, GroupSizes) {
  for (const int group : {1, 2, 3, 4, 5, 6, 7, 8, 16}) {
    check({.heads = 2 * group, .kv_heads = 2, .shapes = {{90, 1}, {30, 25}}});
  }
  check({.heads = 71, .kv_heads = 1, .head_dim = 16, .shapes = {{90, 1}, {30, 25}}});
}

TEST_P(AttentionTest, Windows) {
  for (const int window : {1, 3, 64, 65, 100, 512, 600}) {
    check({.window = window, .shapes = {{1, 1}, {128, 1}, {300, 1}, {1200, 1}, {200, 150}}});
  }
}

TEST_P(AttentionTest, ContextsOfSeveralSegments) {
  check({.shapes = {{512, 1}, {513, 1}, {1024, 1}, {1025, 1}, {1700, 1}}});
  check({.shapes = {{1700, 1}}});
  check({.dtype = DType::kI8, .window = 700, .shapes = {{1700, 1}, {1100, 130}}});
  check({.shapes = {{1100, 130}}});
}

// One key far above all others: the running maximum must carry over blocks and segments.
TEST_P(AttentionTest, LargeScores) {
  const int context = 1100;
  for (const int peak : {0, 100, 600, 1099}) {
    PagedBatch paged(DType::kF32, 1, 1, 8, 20);
    paged.set_step({{context, 1}}, 18, 3);
    for (int pos = 0; pos < context; ++pos) {
      for (int d = 0; d < 8; ++d) {
        paged.pool.set(paged.index(0, 0, 0, 0, pos, d), pos == peak ? 100.0F : -100.0F);
        paged.pool.set(paged.index(0, 1, 0, 0, pos, d), pos == peak ? 1.0F : 2.0F);
      }
    }
    const std::vector<float> q(8, 10.0F);
    std::vector<float> out(8, kPoison);
    AttentionParams p;
    p.q = q.data();
    p.out = out.data();
    p.heads = p.kv_heads = 1;
    p.head_dim = 8;
    p.kv = paged.kv;
    p.batch = paged.batch;
    ops.attention(ops.self, p, {});
    expect_same_bits(out, std::vector<float>(8, 1.0F));
  }
}

// A sequence whose numbers have broken down must not touch the others.
TEST_P(AttentionTest, NanStaysInItsSequence) {
  const Case c{.shapes = {{70, 1}, {30, 30}, {70, 1}}};
  PagedBatch paged(c.dtype, 2, c.kv_heads, c.head_dim, 12);
  paged.set_step(c.shapes, 3, 1);
  fill_keys(c, &paged);
  paged.pool.set(paged.index(1, 0, 0, 1, 0, 5), kPoison);
  const size_t row = size_t(c.heads * c.head_dim);
  const auto q = random_floats(32 * row, 5);
  std::vector<float> out(q.size(), kPoison);
  AttentionParams p;
  p.q = q.data();
  p.out = out.data();
  p.heads = c.heads;
  p.kv_heads = c.kv_heads;
  p.head_dim = c.head_dim;
  p.layer = 1;
  p.kv = paged.kv;
  p.batch = paged.batch;
  ops.attention(ops.self, p, {});
  for (size_t i = 0; i < row; ++i) {
    ASSERT_FALSE(std::isnan(out[i]));
    ASSERT_FALSE(std::isnan(out[31 * row + i]));
    // The first two of four query heads read the poisoned KV head.
    ASSERT_EQ(std::isnan(out[row + i]), i < row / 2);
  }
}

// Zeros for a sequence without keys; the others as if it were not there.
TEST_P(AttentionTest, PaddingAttendsToNothing) {
  const Case c{.shapes = {{70, 1}, {1, 1}, {600, 1}}};
  PagedBatch paged(c.dtype, 2, c.kv_heads, c.head_dim, 40);
  paged.set_step(c.shapes, 10, 1);
  fill_keys(c, &paged);
  const size_t row = size_t(c.heads * c.head_dim);
  const auto q = random_floats(3 * row, 5);
  AttentionParams p;
  p.q = q.data();
  p.heads = c.heads;
  p.kv_heads = c.kv_heads;
  p.head_dim = c.head_dim;
  p.layer = 1;
  p.kv = paged.kv;
  p.batch = paged.batch;
  std::vector<float> want(q.size(), kPoison);
  p.out = want.data();
  ops.attention(ops.self, p, {});
  std::fill_n(want.begin() + long(row), row, 0.0F);
  paged.context_len[1] = 0;
  std::fill_n(paged.tables.begin() + 10, 10, -1);
  std::vector<float> out(q.size(), kPoison);
  p.out = out.data();
  ops.attention(ops.self, p, {});
  expect_same_bits(out, want);
}

TREADLE_FOR_ALL_VARIANTS(AttentionTest);

}  // namespace
}  // namespace treadle::ops::testing
