// From the fused projection to Q and the KV pool, against the steps written out in double
// precision.
#include <algorithm>

#include "testing.h"

namespace treadle::ops::testing {
namespace {

struct Case {
  DType dtype = DType::kF16;
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 64;
  int rotary_dim = 64;
  bool norm = false;
  int logn_len = 0;
};

std::vector<double> prepare(const Case& c, const float* in, const std::vector<float>* norm,
                            const float* cos_sin, double scale) {
  const auto dim = size_t(c.head_dim);
  std::vector<double> x(in, in + dim);
  if (norm != nullptr) {
    double squares = 0;
    for (const double v : x) squares += v * v;
    for (size_t i = 0; i < dim; ++i) x[i] *= (*norm)[i] / std::sqrt(squares / c.head_dim + 1e-6);
  }
  const auto half = size_t(c.rotary_dim / 2);
  for (size_t i = 0; i < half; ++i) {
    const double a = x[i];
    const double b = x[i + half];
    x[i] = a * cos_sin[2 * i] - b * cos_sin[2 * i + 1];
    x[i + half] = b * cos_sin[2 * i] + a * cos_sin[2 * i + 1];
  }
  for (double& v : x) v *= scale;
  return x;
}

class QkvTest : public OpTest {
 protected:
  void check(const Case& c) {
    SCOPED_TRACE(std::string(dtype_name(c.dtype)) + " heads " + std::to_string(c.heads) + "/" +
                 std::to_string(c.kv_heads) + " of " + std::to_string(c.head_dim) + " rotary " +
                 std::to_string(c.rotary_dim));
    PagedBatch paged(c.dtype, 2, c.kv_heads, c.head_dim, 26);
    paged.set_step({{1, 1}, {64, 1}, {65, 1}, {200, 30}, {70, 70}, {130, 1}}, 3 + 1, 5);
    const auto tokens = size_t(paged.batch.num_tokens);
    const auto features = size_t((c.heads + 2 * c.kv_heads) * c.head_dim);
    const auto dim = size_t(c.head_dim);
    const auto qkv = random_floats(tokens * features, 3);
    const auto q_norm = random_floats(dim, 4);
    const auto k_norm = random_floats(dim, 5);
    const auto cos_sin = random_floats(tokens * size_t(c.rotary_dim), 6);
    std::vector<float> q(tokens * size_t(c.heads) * dim, kPoison);
    QkvParams p;
    p.qkv = qkv.data();
    p.q_out = q.data();
    p.q_norm = c.norm ? q_norm.data() : nullptr;
    p.k_norm = c.norm ? k_norm.data() : nullptr;
    p.cos_sin = cos_sin.data();
    p.rotary_dim = c.rotary_dim;
    p.logn_len = c.logn_len;
    p.heads = c.heads;
    p.kv_heads = c.kv_heads;
    p.head_dim = c.head_dim;
    p.layer = 1;
    p.kv = paged.kv;
    p.batch = paged.batch;
    ops.qkv(ops.self, p, {});

    std::vector<double> want_q;
    std::vector<bool> written(paged.pool.size());
    const double rounding = c.dtype == DType::kF32 ? 1e-6 : c.dtype == DType::kF16 ? 6e-4 : 5e-3;
    for (size_t t = 0; t < tokens; ++t) {
      const float* in = qkv.data() + t * features;
      const float* angles = cos_sin.data() + t * size_t(c.rotary_dim);
      const int pos = paged.positions[t];
      const double scale =
          c.logn_len > 0 ? std::max(1.0, std::log(pos + 1.0) / std::log(double(c.logn_len))) : 1.0;
      for (int h = 0; h < c.heads; ++h, in += dim) {
        const auto head = prepare(c, in, c.norm ? &q_norm : nullptr, angles, scale);
        want_q.insert(want_q.end(), head.begin(), head.end());
      }
      for (const int part : {0, 1}) {
        for (int h = 0; h < c.kv_heads; ++h, in += dim) {
          const auto want = part == 0 ? prepare(c, in, c.norm ? &k_norm : nullptr, angles, 1.0)
                                      : std::vector<double>(in, in + dim);
          for (size_t d = 0; d < dim; ++d) {
            const size_t at = paged.index(1, part, h, paged.token_sequence[t], pos, int(d));
            written[at] = true;
            ASSERT_NEAR(paged.pool.get(at), want[d], rounding * (1 + std::fabs(want[d])))
                << "token " << t << " part " << part << " head " << h << " dim " << d;
          }
        }
      }
    }
    expect_near(q, want_q, 3e-6, 3e-6);
    for (size_t i = 0; i < written.size(); ++i) {
      if (written[i]) continue;
      ASSERT_TRUE(std::isnan(paged.pool.get(i))) << "slot " << i << " was written";
    }
  }
};

TEST_P(QkvTest, Dtypes) {
  for (const DType dtype : kFloatTypes) check({.dtype = dtype});
}

TEST_P(QkvTest, HeadDimsAndPartialRotation) {
  for (const int dim : {4, 8, 20, 64, 80, 96, 100, 128, 256}) {
    check({.head_dim = dim, .rotary_dim = dim});
    check({.head_dim = dim, .rotary_dim = dim / 4 * 2});
  }
  check({.rotary_dim = 0});
}

TEST_P(QkvTest, Heads) {
  check({.heads = 1, .kv_heads = 1});
  check({.heads = 14, .kv_heads = 2});
  check({.heads = 8, .kv_heads = 8, .head_dim = 16, .rotary_dim = 16});
}

TEST_P(QkvTest, HeadNormAndLogn) {
  check({.norm = true});
  check({.norm = true, .logn_len = 64});
  check({.logn_len = 100});
}

TREADLE_FOR_ALL_VARIANTS(QkvTest);

}  // namespace
}  // namespace treadle::ops::testing
