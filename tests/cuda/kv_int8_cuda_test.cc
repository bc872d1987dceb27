// An int8 pool on the GPU against the CPU's: what the QKV operation writes is equal to the bit, and
// attention over it agrees, over widths, head groups, windows, ragged lengths, shuffled tables and
// batches of decode tokens and chunks.
#include <algorithm>
#include <numeric>
#include <optional>

#include "ops_cuda.h"
#include "tables.h"

namespace treadle::cuda::testing {
namespace {

using ops::DType;
using ops::KvPool;
using ops::KvScale;

struct Heads {
  int heads, kv_heads, dim, window;
};

constexpr int kLayers = 2;
constexpr int kLayer = 1;

/// Sequences of a batch, with tables into a pool shared by all batches of a test.
struct Batch {
  std::vector<int32_t> begin{0}, context, tables, sequence, positions;
  int stride = 0;
  int decode = 0;
  int longest_query = 0;

  /// shapes: (query, context). Blocks are shuffled; sequence s has the same ones in every batch.
  Batch(const std::vector<std::pair<int, int>>& shapes, int blocks) {
    std::vector<int32_t> ids(blocks);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(3));
    for (const auto& [query, length] : shapes) stride = std::max(stride, (length + 63) / 64);
    int next = 0;
    for (const auto& [query, length] : shapes) {
      for (int b = 0; b < stride; ++b) tables.push_back(b * 64 < length ? ids.at(next++) : -1);
      for (int i = 0; i < query; ++i) {
        sequence.push_back(static_cast<int32_t>(context.size()));
        positions.push_back(length - query + i);
      }
      if (query == 1 && decode == static_cast<int>(context.size())) ++decode;
      context.push_back(length);
      begin.push_back(begin.back() + query);
      longest_query = std::max(longest_query, query);
    }
  }

  int tokens() const { return begin.back(); }
  ops::SequenceBatch params() const {
    return {.num_tokens = tokens(),
            .num_sequences = static_cast<int32_t>(context.size()),
            .num_decode = decode,
            .max_query_len = longest_query,
            .max_context_len = *std::max_element(context.begin(), context.end()),
            .query_begin = begin.data(),
            .context_len = context.data(),
            .block_tables = tables.data(),
            .block_table_stride = stride,
            .token_sequence = sequence.data(),
            .positions = positions.data()};
  }
};

/// A batch's arrays where the GPU computes.
struct DeviceBatch {
  Memory begin, context, tables, sequence, positions;
  ops::SequenceBatch params;

  DeviceBatch(const ops::Ops& gpu, const Batch& b)
      : begin(gpu, b.begin.data(), b.begin.size() * 4),
        context(gpu, b.context.data(), b.context.size() * 4),
        tables(gpu, b.tables.data(), b.tables.size() * 4),
        sequence(gpu, b.sequence.data(), b.sequence.size() * 4),
        positions(gpu, b.positions.data(), b.positions.size() * 4),
        params(b.params()) {
    params.query_begin = begin.as<int32_t>();
    params.context_len = context.as<int32_t>();
    params.block_tables = tables.as<int32_t>();
    params.token_sequence = sequence.as<int32_t>();
    params.positions = positions.as<int32_t>();
  }
};

/// The CPU keeps K as [head_dim][64], the GPU as [64][head_dim]: the CPU's pool in the GPU's order.
std::vector<char> in_gpu_order(const KvPool& kv, const std::vector<char>& pool) {
  std::vector<char> out = pool;
  const auto dim = static_cast<size_t>(kv.head_dim);
  for (int block = 0; block < kv.num_blocks; ++block) {
    for (int layer = 0; layer < kv.num_layers; ++layer) {
      for (int head = 0; head < kv.kv_heads; ++head) {
        const size_t base = size_t(block) * kv.block_bytes() + size_t(layer) * kv.layer_elems() +
                            size_t(head) * kv.head_elems();
        for (size_t key = 0; key < 64; ++key) {
          for (size_t d = 0; d < dim; ++d) out[base + key * dim + d] = pool[base + d * 64 + key];
        }
      }
    }
  }
  return out;
}

class Problem {
 public:
  /// ranges: [2 (K, V)][kv_heads] of static scales, or none.
  Problem(const Tables& t, const Heads& heads, const std::vector<std::pair<int, int>>& step,
          const std::vector<KvScale>& ranges = {})
      : t_(t), heads_(heads), step_(step, kBlocks), written_(written(step), kBlocks) {
    kv_ = {.dtype = DType::kI8,
           .static_scales = !ranges.empty(),
           .num_blocks = kBlocks,
           .num_layers = kLayers,
           .kv_heads = heads.kv_heads,
           .head_dim = heads.dim};
    name_ = label(t, "int8 KV") + " " + std::to_string(heads.heads) + "/" +
            std::to_string(heads.kv_heads) + " dim " + std::to_string(heads.dim) + " window " +
            std::to_string(heads.window);
    cpu_pool_ = poison(kv_.bytes());
    for (size_t i = 0; i < ranges.size(); ++i) {
      auto* scales =
          reinterpret_cast<KvScale*>(cpu_pool_.data() + kv_.scales_at(0, kLayer, 0, int32_t(i)));
      std::fill_n(scales, 64, ranges[i]);
    }
    gpu_pool_.emplace(t.gpu, cpu_pool_.data(), cpu_pool_.size());
  }

  /// Writes all keys. Without a norm and RoPE both compute on the same floats.
  void write(float size, const std::string& what, bool broken = false) {
    const auto features = size_t(heads_.heads + 2 * heads_.kv_heads) * heads_.dim;
    std::vector<float> qkv = random_values(t_.act, size_t(written_.tokens()) * features, 5, size);
    for (size_t i = 0; i < 2 * features; ++i) qkv[i] = i % 7 < 3 ? 0.25F : qkv[i];
    const size_t heads_end = features - size_t(heads_.dim);
    for (int d = 0; d < heads_.dim; ++d) qkv[heads_end + d] = 1.5F;  // V of a head all equal
    if (broken) qkv[5 * features + heads_end + 3] = INFINITY;
    run_qkv(qkv, {}, {}, what);
    compare_pools(what);
  }

  /// With norms and RoPE: sums and angles round differently, so a value may be the next integer.
  void write_rotated(const std::string& what) {
    const auto features = size_t(heads_.heads + 2 * heads_.kv_heads) * heads_.dim;
    const std::vector<float> qkv = random_values(t_.act, size_t(written_.tokens()) * features, 7);
    const std::vector<float> norms = random_values(DType::kF32, size_t(2) * heads_.dim, 8);
    std::vector<float> cos_sin(size_t(written_.tokens()) * heads_.dim);
    for (size_t i = 0; i < cos_sin.size(); i += 2) {
      const double angle = 0.37 * double(i % 1009);
      cos_sin[i] = float(std::cos(angle));
      cos_sin[i + 1] = float(std::sin(angle));
    }
    const Memory gpu_norms(t_.gpu, norms.data(), norms.size() * 4);
    const Memory gpu_angles(t_.gpu, cos_sin.data(), cos_sin.size() * 4);
    auto params = [&](const float* norm, const float* angles) {
      ops::QkvParams p{.rotary_dim = heads_.dim, .norm_eps = 1e-6F};
      p.q_norm = norm;
      p.k_norm = norm + heads_.dim;
      p.cos_sin = angles;
      return p;
    };
    run_qkv(qkv, params(norms.data(), cos_sin.data()),
            params(gpu_norms.as<float>(), gpu_angles.as<float>()), what);
    compare_values(what);
  }

  /// The operation on both sides; `cpu` and `gpu` have what is there beside projection and pool.
  void run_qkv(const std::vector<float>& qkv, ops::QkvParams cpu, ops::QkvParams gpu,
               const std::string& what) {
    const std::vector<char> bytes = encode(t_.act, qkv);
    std::vector<float> cpu_q(size_t(written_.tokens()) * heads_.heads * heads_.dim);
    const Memory gpu_qkv(t_.gpu, bytes.data(), bytes.size());
    const Memory gpu_q(t_.gpu, cpu_q.size() * 2);
    const DeviceBatch batch(t_.gpu, written_);
    for (ops::QkvParams* p : {&cpu, &gpu}) {
      p->heads = heads_.heads;
      p->kv_heads = heads_.kv_heads;
      p->head_dim = heads_.dim;
      p->layer = kLayer;
      p->kv = kv_;
    }
    cpu.qkv = qkv.data();
    cpu.q_out = cpu_q.data();
    cpu.kv.base = cpu_pool_.data();
    cpu.batch = written_.params();
    t_.cpu.qkv(t_.cpu.self, cpu, {});
    gpu.qkv = gpu_qkv.as<void>();
    gpu.q_out = gpu_q.as<void>();
    gpu.kv.base = gpu_pool_->as<void>();
    gpu.batch = batch.params;
    t_.gpu.qkv(t_.gpu.self, gpu, {});
    expect_near(t_, name_ + what + " q", decode(t_.act, gpu_q.get()), cpu_q, 2 * epsilon(t_.act),
                1e-5);
  }

  /// Bytes are equal, but for a not-a-number, which has many.
  void compare_pools(const std::string& what) {
    const std::vector<char> want = in_gpu_order(kv_, cpu_pool_);
    const std::vector<char> got = gpu_pool_->get();
    size_t wrong = 0;
    size_t finite = 0;
    for (int block = 0; block < kBlocks; ++block) {
      const size_t base = size_t(block) * kv_.block_bytes();
      const size_t elements = base + kv_.block_elems();
      for (size_t i = base; i < elements; ++i) wrong += got[i] != want[i] ? 1 : 0;
      if (kv_.static_scales && block > 0) continue;
      const size_t scales = kv_.scales_at(block, 0, 0, 0);
      for (size_t i = scales; i < scales + kv_.num_scales() * sizeof(KvScale); i += 4) {
        float a = 0;
        float b = 0;
        std::memcpy(&a, &got[i], 4);
        std::memcpy(&b, &want[i], 4);
        finite += std::isfinite(b) ? 1 : 0;
        wrong += a == b || (std::isnan(a) && std::isnan(b)) ? 0 : 1;
      }
    }
    const size_t tokens = kv_.static_scales ? 64 : size_t(written_.tokens());
    const size_t scales = tokens * 2 * heads_.kv_heads * 2;
    t_.report.check(wrong == 0, name_ + what + ": " + std::to_string(wrong) + " bytes differ");
    t_.report.check(finite + 1 >= scales && finite <= scales,
                    name_ + what + ": " + std::to_string(finite) + " parameters were written");
  }

  /// Restored values are within a step of the CPU's.
  void compare_values(const std::string& what) {
    const std::vector<char> want = in_gpu_order(kv_, cpu_pool_);
    const std::vector<char> got = gpu_pool_->get();
    size_t wrong = 0;
    size_t written = 0;
    for (int block = 0; block < kBlocks; ++block) {
      const size_t base = size_t(block) * kv_.block_bytes();
      for (int part = 0; part < 2 * heads_.kv_heads; ++part) {
        const size_t page =
            base + size_t(kLayer) * kv_.layer_elems() + size_t(part) * kv_.head_elems();
        for (size_t slot = 0; slot < 64; ++slot) {
          KvScale a;
          KvScale b;
          const size_t at = kv_.scales_at(block, kLayer, 0, part) + slot * sizeof(KvScale);
          std::memcpy(&a, &got[at], sizeof a);
          std::memcpy(&b, &want[at], sizeof b);
          wrong += std::isfinite(a.scale) != std::isfinite(b.scale) ? 1 : 0;
          if (!std::isfinite(a.scale) || !std::isfinite(b.scale)) continue;
          ++written;
          for (int d = 0; d < heads_.dim; ++d) {
            const size_t i = page + slot * size_t(heads_.dim) + d;
            const float x = static_cast<int8_t>(got[i]) * a.scale + a.zero;
            const float y = static_cast<int8_t>(want[i]) * b.scale + b.zero;
            wrong += std::fabs(x - y) <= 1.01F * b.scale ? 0 : 1;
          }
        }
      }
    }
    t_.report.check(wrong == 0, name_ + what + ": " + std::to_string(wrong) + " values differ");
    t_.report.check(written == size_t(written_.tokens()) * 2 * heads_.kv_heads,
                    name_ + what + ": " + std::to_string(written) + " heads were written");
  }

  int tokens() const { return written_.tokens(); }

  void attend() {
    const size_t elements = size_t(step_.tokens()) * heads_.heads * heads_.dim;
    const std::vector<float> q = random_values(t_.act, elements, 6);
    const std::vector<char> bytes = encode(t_.act, q);
    std::vector<float> want(elements);
    Memory gpu_q(t_.gpu, bytes.data(), bytes.size());
    Memory out(t_.gpu, elements * 2);
    const DeviceBatch batch(t_.gpu, step_);
    ops::AttentionParams p{.scale = 1.0F / std::sqrt(static_cast<float>(heads_.dim)),
                           .window = heads_.window,
                           .heads = heads_.heads,
                           .kv_heads = heads_.kv_heads,
                           .head_dim = heads_.dim,
                           .layer = kLayer};
    p.kv = kv_;
    ops::AttentionParams cpu = p;
    cpu.q = q.data();
    cpu.out = want.data();
    cpu.kv.base = cpu_pool_.data();
    cpu.batch = step_.params();
    t_.cpu.attention(t_.cpu.self, cpu, {});
    ops::AttentionParams gpu = p;
    gpu.q = gpu_q.as<void>();
    gpu.out = out.as<void>();
    gpu.kv.base = gpu_pool_->as<void>();
    gpu.batch = batch.params;
    const auto got = run_twice(t_, name_, out, [&] { t_.gpu.attention(t_.gpu.self, gpu, {}); });
    // Probabilities and, in prefill, keys and values are rounded to the activations' type.
    expect_near(t_, name_ + " attention", decode(t_.act, got), want, 4 * epsilon(t_.act),
                t_.act == DType::kF16 ? 4e-3 : 3e-2);
  }

 private:
  static constexpr int kBlocks = 64;

  static std::vector<std::pair<int, int>> written(const std::vector<std::pair<int, int>>& step) {
    std::vector<std::pair<int, int>> all;
    for (const auto& [query, length] : step) all.emplace_back(length, length);
    return all;
  }

  const Tables& t_;
  Heads heads_;
  Batch step_;
  Batch written_;
  KvPool kv_;
  std::string name_;
  std::vector<char> cpu_pool_;
  std::optional<Memory> gpu_pool_;
};

using Step = std::vector<std::pair<int, int>>;  // (query, context)
const Step kStep = {{1, 300}, {1, 1},    {1, 63},  {1, 64},    {1, 65},    {1, 517},
                    {40, 40}, {70, 200}, {1, 130}, {130, 300}, {129, 400}, {64, 64}};

/// For the slow tools that watch memory.
const Step kSmallStep = {{1, 70}, {1, 1}, {40, 40}, {30, 100}};

void test_sweep(const Tables& t, const Step& step) {
  for (const Heads& heads :
       {Heads{4, 2, 64, 0}, Heads{8, 8, 80, 0}, Heads{6, 2, 96, 0}, Heads{32, 8, 128, 0},
        Heads{14, 2, 128, 0}, Heads{16, 1, 128, 0}, Heads{4, 1, 256, 0}, Heads{8, 2, 64, 100},
        Heads{8, 2, 128, 70}, Heads{4, 4, 256, 33}, Heads{5, 1, 80, 64}}) {
    Problem problem(t, heads, step);
    problem.write(1.0F, " with a broken head", true);
    Problem sound(t, heads, step);
    sound.write(1.0F, "");
    sound.attend();
    std::vector<KvScale> ranges;
    for (int i = 0; i < 2 * heads.kv_heads; ++i) {
      ranges.push_back({0.02F + 0.001F * float(i), i % 3 == 0 ? 0.0F : 0.1F * float(i % 4)});
    }
    Problem with_ranges(t, heads, step, ranges);
    with_ranges.write(1.0F, " with static scales");
    with_ranges.attend();
  }
}

/// From few tokens to many: each number of heads that a thread takes.
void test_token_counts(const Tables& t) {
  for (const Step& step : std::vector<Step>{
           {{1, 6}}, {{1, 30}, {1, 1}}, {{1, 100}}, {{9, 64}, {5, 120}}, {{90, 250}}, {{1, 700}}}) {
    for (const Heads& heads : {Heads{32, 8, 128, 0}, Heads{5, 1, 80, 0}, Heads{4, 4, 256, 0}}) {
      Problem exact(t, heads, step);
      exact.write(1.0F, " of " + std::to_string(exact.tokens()) + " tokens");
      Problem rotated(t, heads, step);
      rotated.write_rotated(" of " + std::to_string(rotated.tokens()) + " rotated tokens");
    }
  }
}

/// Values of any size: what comes out is as near, relative to them.
void test_sizes(const Tables& t) {
  for (const float size : {1e-4F, 1e-2F, 30.0F}) {
    Problem problem(t, {8, 2, 128, 0}, kStep);
    problem.write(size, " of size " + std::to_string(size));
  }
}

/// A padding token's block is -1: its K and V go nowhere.
void test_padding(const Tables& t) {
  KvPool kv{.dtype = DType::kI8, .num_blocks = 2, .num_layers = 1, .kv_heads = 1, .head_dim = 64};
  const std::vector<char> nans = poison(kv.block_bytes() * 2);
  Memory pool(t.gpu, nans.data(), nans.size());
  const std::vector<char> values = encode(t.act, random_values(t.act, 3 * 64, 8));
  Memory qkv(t.gpu, values.data(), values.size());
  Memory q(t.gpu, 64 * 2);
  const Batch one({{1, 1}}, 1);
  DeviceBatch batch(t.gpu, one);
  const int32_t none = -1;
  batch.tables.set(&none, 4);
  kv.base = pool.as<void>();
  ops::QkvParams p{
      .qkv = qkv.as<void>(), .q_out = q.as<void>(), .heads = 1, .kv_heads = 1, .head_dim = 64};
  p.kv = kv;
  p.batch = batch.params;
  t.gpu.qkv(t.gpu.self, p, {});
  t.report.check(pool.get() == nans, label(t, "padding") + " wrote to the pool");
}

/// A block with its scales moves in one copy.
void test_copy(const Tables& t) {
  KvPool kv{.dtype = DType::kI8, .num_blocks = 4, .num_layers = 3, .kv_heads = 2, .head_dim = 80};
  std::vector<char> bytes(kv.block_bytes() * 4);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = char(i * 2654435761U >> 13);
  Memory pool(t.gpu, bytes.data(), bytes.size());
  kv.base = pool.as<void>();
  t.gpu.copy_block(t.gpu.self, {.kv = kv, .src = 3, .dst = 1}, {});
  std::vector<char> want = bytes;
  std::copy_n(bytes.begin() + long(3 * kv.block_bytes()), kv.block_bytes(),
              want.begin() + long(kv.block_bytes()));
  t.report.check(pool.get() == want, "copy_block of int8");
}

}  // namespace
}  // namespace treadle::cuda::testing

/// With the argument "small" short problems, for the slow tools that watch memory.
int main(int argc, char** argv) {
  namespace test = treadle::cuda::testing;
  const bool small = argc > 1 && std::string(argv[1]) == "small";
  return test::run_on_tables("kv_int8_cuda_test", [small](const test::Tables& tables) {
    test::test_sweep(tables, small ? test::kSmallStep : test::kStep);
    test::test_token_counts(tables);
    if (!small) test::test_sizes(tables);
    test::test_padding(tables);
    test::test_copy(tables);
  });
}
