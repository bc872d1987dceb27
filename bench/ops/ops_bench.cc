// Speed of the CPU operations as a fraction of what this machine can do, measured in the same run.
//
//   ops_bench [threads] [plain|avx2|avx512]
//
// For the shapes of two models (tiny-chat: hidden 256, intermediate 768; 415M: hidden 896,
// intermediate 4864): linear layers with float16 weights, in GB/s of weights for few tokens and
// GFLOP/s for many, and attention. The weights of a run are cycled through copies, so that they
// come from where they would come from in a model: memory, or the last cache if the model fits
// there.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "ceiling.h"
#include "ops/cpu/backend.h"
#include "timing.h"

namespace treadle::bench {
namespace {

using namespace ops;

std::vector<float> random_floats(size_t n, float scale) {
  std::mt19937 generator(1);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> values(n);
  for (float& v : values) v = uniform(generator);
  return values;
}

struct Shape {
  const char* name;
  int in;
  int out;
  bool silu_mul;
};

struct Model {
  const char* name;
  int layers;
  int heads, kv_heads, head_dim;
  std::vector<Shape> shapes;
};

const Model kModels[] = {
    {"tiny-chat",
     8,
     4,
     2,
     64,
     {{"qkv", 256, 512, false},
      {"o", 256, 256, false},
      {"gate_up", 256, 1536, true},
      {"down", 768, 256, false},
      {"head", 256, 4096, false}}},
    {"415M",
     24,
     14,
     2,
     64,
     {{"qkv", 896, 1152, false},
      {"o", 896, 896, false},
      {"gate_up", 896, 9728, true},
      {"down", 4864, 896, false},
      {"head", 896, 32000, false}}},
};

struct Bench {
  const Ops& ops;
  double read_rate;
  double flop_rate;

  void linear(const Model& model, const Shape& shape, int tokens) const {
    const std::vector<uint16_t> values(size_t(shape.in) * size_t(shape.out), 0x2E66);  // 0.1
    const WeightPiece piece{values.data(), DType::kF16, shape.out};
    const bool head = std::strcmp(shape.name, "head") == 0;
    std::vector<LinearWeight> weights(size_t(head ? 1 : model.layers));
    for (auto& w : weights) {
      w = ops.make_linear(ops.self, &piece, 1, shape.in, nullptr, shape.silu_mul);
    }
    const auto x = random_floats(size_t(tokens) * size_t(shape.in), 1.0F);
    std::vector<float> y(size_t(tokens) * size_t(shape.out));
    LinearParams p;
    p.x = x.data();
    p.y = y.data();
    p.num_tokens = tokens;
    p.silu_mul = shape.silu_mul;
    const auto all = time_of([&] {
      for (const auto& w : weights) {
        p.weight = &w;
        ops.linear(ops.self, p, {});
      }
    });
    const double work = double(shape.in) * shape.out;
    auto report = [&](double seconds) {
      const double each = seconds / double(weights.size());
      const double bytes = work * 2 / each;
      const double flops = work * 2 * tokens / each;
      std::printf("  %9.2f us %6.1f GB/s (%3.0f%%) %6.1f GFLOP/s (%3.0f%%)", each * 1e6,
                  bytes * 1e-9, 100 * bytes / read_rate, flops * 1e-9, 100 * flops / flop_rate);
    };
    std::printf("%-10s %-8s %4d tokens", model.name, shape.name, tokens);
    report(all.median);
    std::printf(" | best");
    report(all.best);
    std::printf("\n");
    std::fflush(stdout);
    for (auto& w : weights) ops.release_linear(ops.self, &w);
  }

  /// `sequences` of `context` keys each, the last `query` tokens of which are computed.
  void attention(const Model& model, int sequences, int context, int query) const {
    KvPool kv;
    kv.dtype = DType::kF16;
    kv.num_layers = model.layers;
    kv.kv_heads = model.kv_heads;
    kv.head_dim = model.head_dim;
    const int blocks = (context + kBlockTokens - 1) / kBlockTokens;
    kv.num_blocks = sequences * blocks;
    const size_t elements = size_t(kv.num_blocks) * kv.block_elems();
    kv.base = ops.alloc(ops.self, elements * 2);
    const std::vector<uint16_t> fill(4096, 0x2E66);
    for (size_t i = 0; i + 4096 <= elements; i += 4096) {
      std::memcpy(static_cast<uint16_t*>(kv.base) + i, fill.data(), 8192);
    }
    std::vector<int32_t> begin{0}, lengths, tables, token_sequence, positions;
    for (int s = 0; s < sequences; ++s) {
      begin.push_back(begin.back() + query);
      lengths.push_back(context);
      for (int b = 0; b < blocks; ++b) tables.push_back((b * sequences + s));
      for (int t = 0; t < query; ++t) {
        token_sequence.push_back(s);
        positions.push_back(context - query + t);
      }
    }
    const size_t size = positions.size() * size_t(model.heads * model.head_dim);
    const auto q = random_floats(size, 1.0F);
    std::vector<float> out(size);
    AttentionParams p;
    p.q = q.data();
    p.out = out.data();
    p.scale = 0.125F;
    p.heads = model.heads;
    p.kv_heads = model.kv_heads;
    p.head_dim = model.head_dim;
    p.kv = kv;
    p.batch.num_tokens = static_cast<int32_t>(positions.size());
    p.batch.num_sequences = sequences;
    p.batch.num_decode = query == 1 ? sequences : 0;
    p.batch.max_query_len = query;
    p.batch.max_context_len = context;
    p.batch.query_begin = begin.data();
    p.batch.context_len = lengths.data();
    p.batch.block_tables = tables.data();
    p.batch.block_table_stride = blocks;
    p.batch.token_sequence = token_sequence.data();
    p.batch.positions = positions.data();
    const auto all = time_of([&] {
      for (int layer = 0; layer < model.layers; ++layer) {
        p.layer = layer;
        ops.attention(ops.self, p, {});
      }
    });
    const double each = all.median / model.layers;
    const double bytes = double(sequences) * context * kv.kv_heads * kv.head_dim * 2 * 2 / each;
    const double pairs = double(sequences) * query * (context - (query - 1) / 2.0);
    const double flops = pairs * model.heads * model.head_dim * 4 / each;
    std::printf("%-10s attention %3d x %5d keys, %4d queries %9.2f us", model.name, sequences,
                context, query, each * 1e6);
    std::printf(" %6.1f GB/s (%3.0f%%) %6.1f GFLOP/s (%3.0f%%)\n", bytes * 1e-9,
                100 * bytes / read_rate, flops * 1e-9, 100 * flops / flop_rate);
    ops.release(ops.self, kv.base);
  }
};

int run(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
  cpu::Isa isa = cpu::supported_isas().back();
  for (const cpu::Isa candidate : cpu::supported_isas()) {
    if (argc > 2 && std::strcmp(argv[2], cpu::isa_name(candidate)) == 0) isa = candidate;
  }
  const Ops ops = cpu::make_ops(threads, isa);
  cpu::ThreadPool pool(threads);
  const Bench bench{ops, read_bandwidth(pool), multiply_add_rate(pool)};
  std::printf("%s, %d threads: read %.1f GB/s, multiply-add %.0f GFLOP/s\n", cpu::isa_name(isa),
              pool.num_threads(), bench.read_rate * 1e-9, bench.flop_rate * 1e-9);
  for (const Model& model : kModels) {
    for (const int tokens : {1, 8, 32, 512}) {
      for (const Shape& shape : model.shapes) bench.linear(model, shape, tokens);
    }
    bench.attention(model, 1, 100, 1);
    bench.attention(model, 1, 1500, 1);
    bench.attention(model, 32, 200, 1);
    bench.attention(model, 1, 512, 512);
    bench.attention(model, 1, 4096, 512);
  }
  ops.destroy(ops.self);
  return 0;
}

}  // namespace
}  // namespace treadle::bench

int main(int argc, char** argv) { return treadle::bench::run(argc, argv); }
