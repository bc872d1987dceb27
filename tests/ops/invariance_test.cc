// A token's result is bit-identical alone, in a batch, in any cut of its prompt, on any number of
// threads.
#include <algorithm>

#include "testing.h"

namespace treadle::ops::testing {
namespace {

/// A layer's attention half: norm and projection, QKV split with cache write, attention, output
/// projection added to the input.
struct Layer {
  int heads, kv_heads, head_dim, window;
  DType weight_dtype, kv_dtype;

  int hidden() const { return heads * head_dim; }
  int features() const { return (heads + 2 * kv_heads) * head_dim; }
};

class InvarianceTest : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  static constexpr int kBlocks = 20;

  /// Hidden states of a sequence's tokens.
  static std::vector<float> inputs(const Layer& layer, int sequence, int length) {
    return random_floats(size_t(length) * size_t(layer.hidden()), 100U + uint32_t(sequence));
  }

  /// Runs the steps, each a list of how many tokens of each sequence come next, and returns every
  /// sequence's outputs, token after token.
  static std::vector<std::vector<float>> run(const Layer& layer, int threads,
                                             const std::vector<std::vector<int>>& steps) {
    const Device device({GetParam(), threads});
    const Ops& ops = device.ops;
    const int sequences = static_cast<int>(steps[0].size());
    const auto hidden = size_t(layer.hidden());
    const Tensor in_weight(layer.weight_dtype,
                           random_floats(hidden * size_t(layer.features()), 1, 0.1F));
    const Tensor out_weight(layer.weight_dtype, random_floats(hidden * hidden, 2, 0.1F));
    const WeightPiece in_piece{in_weight.bytes.data(), layer.weight_dtype, layer.features()};
    const WeightPiece out_piece{out_weight.bytes.data(), layer.weight_dtype, layer.hidden()};
    LinearWeight w_in = ops.make_linear(ops.self, &in_piece, 1, layer.hidden(), nullptr, false);
    LinearWeight w_out = ops.make_linear(ops.self, &out_piece, 1, layer.hidden(), nullptr, false);
    std::vector<float> inv_freq;
    for (int i = 0; i < layer.head_dim / 2; ++i) {
      inv_freq.push_back(std::pow(10000.0F, -2.0F * float(i) / float(layer.head_dim)));
    }

    PagedBatch paged(layer.kv_dtype, 1, layer.kv_heads, layer.head_dim, sequences * kBlocks + 2);
    std::vector<int> done(size_t(sequences), 0);
    std::vector<std::vector<float>> outputs{size_t(sequences)};
    for (const auto& step : steps) {
      // The sequences of this step; their blocks do not move between steps.
      std::vector<SequenceShape> shapes;
      for (int s = 0; s < sequences; ++s)
        shapes.push_back({done[size_t(s)] + step[size_t(s)], step[size_t(s)]});
      paged.set_step(shapes, kBlocks, 77);
      std::vector<float> x;
      for (int s = 0; s < sequences; ++s) {
        const auto all = inputs(layer, s, shapes[size_t(s)].context);
        x.insert(x.end(), all.begin() + long(size_t(done[size_t(s)]) * hidden), all.end());
      }
      const auto tokens = size_t(paged.batch.num_tokens);
      std::vector<float> qkv(tokens * size_t(layer.features()), kPoison);
      std::vector<float> q(tokens * hidden, kPoison), mixed(q), y(x);
      std::vector<float> cos_sin(tokens * size_t(layer.head_dim), kPoison);
      const std::vector<float> norm(hidden, 1.5F);
      ops.linear(ops.self,
                 {.x = x.data(),
                  .weight = &w_in,
                  .norm = norm.data(),
                  .y = qkv.data(),
                  .num_tokens = int32_t(tokens)},
                 {});
      RopeParams rope;
      rope.positions = paged.positions.data();
      rope.inv_freq = inv_freq.data();
      rope.cos_sin = cos_sin.data();
      rope.num_tokens = int32_t(tokens);
      rope.rotary_dim = layer.head_dim;
      ops.rope(ops.self, rope, {});
      QkvParams split;
      split.qkv = qkv.data();
      split.q_out = q.data();
      split.cos_sin = cos_sin.data();
      split.rotary_dim = layer.head_dim;
      split.heads = layer.heads;
      split.kv_heads = layer.kv_heads;
      split.head_dim = layer.head_dim;
      split.kv = paged.kv;
      split.batch = paged.batch;
      ops.qkv(ops.self, split, {});
      AttentionParams attend;
      attend.q = q.data();
      attend.out = mixed.data();
      attend.scale = 0.2F;
      attend.window = layer.window;
      attend.heads = layer.heads;
      attend.kv_heads = layer.kv_heads;
      attend.head_dim = layer.head_dim;
      attend.kv = paged.kv;
      attend.batch = paged.batch;
      ops.attention(ops.self, attend, {});
      ops.linear(ops.self,
                 {.x = mixed.data(),
                  .weight = &w_out,
                  .y = y.data(),
                  .num_tokens = int32_t(tokens),
                  .add = true},
                 {});
      for (int s = 0; s < sequences; ++s) {
        const auto begin = y.begin() + long(size_t(paged.query_begin[size_t(s)]) * hidden);
        const auto end = y.begin() + long(size_t(paged.query_begin[size_t(s) + 1]) * hidden);
        outputs[size_t(s)].insert(outputs[size_t(s)].end(), begin, end);
        done[size_t(s)] += step[size_t(s)];
      }
    }
    ops.release_linear(ops.self, &w_in);
    ops.release_linear(ops.self, &w_out);
    return outputs;
  }

  static std::vector<std::vector<int>> one_by_one(int prompt, int length) {
    std::vector<std::vector<int>> steps = {{prompt}};
    for (int i = prompt; i < length; ++i) steps.push_back({1});
    return steps;
  }
};

TEST_P(InvarianceTest, AnyCutOfAPrompt) {
  const Layer layers[] = {
      {4, 2, 16, 0, DType::kF16, DType::kF16},   {7, 1, 20, 0, DType::kBF16, DType::kF32},
      {3, 3, 8, 100, DType::kF32, DType::kBF16}, {4, 2, 16, 530, DType::kF16, DType::kF16},
      {7, 1, 20, 0, DType::kF16, DType::kI8},
  };
  const int length = 1100;  // three segments
  for (const Layer& layer : layers) {
    const auto whole = run(layer, 1, {{length}});
    for (const int threads : {1, 2, 4}) {
      SCOPED_TRACE(std::to_string(threads) + " threads");
      expect_same_bits(run(layer, threads, {{length}})[0], whole[0]);
      expect_same_bits(run(layer, threads, {{1}, {63}, {1}, {500}, {2}, {33}, {500}})[0], whole[0]);
      expect_same_bits(run(layer, threads, {{512}, {512}, {76}})[0], whole[0]);
    }
    expect_same_bits(run(layer, 2, one_by_one(1000, length))[0], whole[0]);
  }
}

TEST_P(InvarianceTest, TokenByToken) {
  for (const DType kv : {DType::kF16, DType::kI8}) {
    const Layer layer{4, 2, 16, 0, DType::kF16, kv};
    const auto whole = run(layer, 2, {{200}});
    expect_same_bits(run(layer, 2, one_by_one(1, 200))[0], whole[0]);
  }
}

TEST_P(InvarianceTest, AloneOrInABatch) {
  const Layer layer{4, 2, 16, 0, DType::kF16, DType::kF16};
  const std::vector<std::vector<int>> steps = {
      {600, 1, 70, 40, 513}, {1, 1, 1, 1, 1}, {1, 300, 1, 2, 1}, {1, 1, 1, 100, 1}};
  for (const int threads : {1, 2, 4}) {
    const auto together = run(layer, threads, steps);
    // Sequence 0 of a batch of one reads the inputs of sequence 0.
    std::vector<std::vector<int>> alone;
    for (const auto& step : steps) alone.push_back({step[0]});
    expect_same_bits(run(layer, 1, alone)[0], together[0]);
    std::vector<std::vector<int>> three;
    for (const auto& step : steps) three.push_back({step[0], step[1], step[2]});
    const auto fewer = run(layer, 2, three);
    for (size_t s = 0; s < 3; ++s) expect_same_bits(fewer[s], together[s]);
  }
}

// Logits of a token do not depend on how many rows the head computes at once.
TEST_P(InvarianceTest, LinearRowsAreIndependent) {
  const int in = 1500;
  for (const DType dtype : kFloatTypes) {
    for (const bool silu_mul : {false, true}) {
      const int out = 2 * 150;
      const int columns = silu_mul ? out / 2 : out;
      const Tensor weight(dtype, random_floats(size_t(in) * size_t(out), 1));
      const auto x = random_floats(size_t(in) * 140, 2);
      std::vector<float> first;
      for (const int threads : {1, 2, 4}) {
        const Device device({GetParam(), threads});
        const Ops& ops = device.ops;
        const WeightPiece piece{weight.bytes.data(), dtype, out};
        LinearWeight w = ops.make_linear(ops.self, &piece, 1, in, nullptr, silu_mul);
        for (const int tokens : {140, 1, 2, 3, 4, 5, 6, 7, 8, 13, 24, 31, 60}) {
          std::vector<float> y(size_t(tokens) * size_t(columns), kPoison);
          ops.linear(ops.self,
                     {.x = x.data(),
                      .weight = &w,
                      .y = y.data(),
                      .num_tokens = tokens,
                      .silu_mul = silu_mul},
                     {});
          if (first.empty()) first = y;
          expect_same_bits(y, {first.begin(), first.begin() + long(y.size())});
        }
        ops.release_linear(ops.self, &w);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, InvarianceTest, ::testing::ValuesIn(cpu::supported_isas()),
                         [](const auto& isa) { return std::string(cpu::isa_name(isa.param)); });

}  // namespace
}  // namespace treadle::ops::testing
