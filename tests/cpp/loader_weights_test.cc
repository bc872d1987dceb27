// Weights of every family: names, shapes, order of rows, memory.
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "loader/convert.h"
#include "loader/loader.h"
#include "loader/tensor_names.h"
#include "loader_testing.h"
#include "model/weights.h"

namespace treadle::loader {
namespace {

using model::ModelSpec;
using model::Weights;
using testing::expect_error;
using testing::FakeBackend;
using testing::safetensors_file;
using testing::TempDir;
using testing::TestTensor;
using testing::TestTensors;

ModelSpec small_spec() {
  ModelSpec spec;
  spec.architecture = "TestForCausalLM";
  spec.num_layers = 2;
  spec.hidden_size = 6;
  spec.intermediate_size = 5;
  spec.num_heads = 4;
  spec.num_kv_heads = 2;
  spec.head_dim = 2;
  spec.vocab_size = 7;
  return spec;
}

// Every tensor the model needs. Row r of tensor t has all its elements equal to a number that tells
// t and r apart.
TestTensors make_tensors(const ModelSpec& spec, const std::string& dtype) {
  TestTensors out;
  float base = 0;
  for (const ExpectedTensor& expected : expected_tensors(spec, tensor_names(spec))) {
    TestTensor& tensor = out[expected.name];
    tensor.dtype = dtype;
    tensor.shape = expected.shape;
    const int64_t columns = expected.shape.size() == 2 ? expected.shape[1] : 1;
    for (int64_t i = 0; i < expected.shape[0] * columns; ++i) {
      tensor.values.push_back(base + static_cast<float>(i / columns));
    }
    // Integers up to 256 are exact in bfloat16.
    base = static_cast<float>(static_cast<int>(base + 13) % 120);
  }
  return out;
}

// The first element of every row that `names` have, in that order.
std::vector<float> rows_of(const TestTensors& tensors, const std::vector<std::string>& names) {
  std::vector<float> out;
  for (const std::string& name : names) {
    const TestTensor& tensor = tensors.at(name);
    const int64_t columns = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
    for (int64_t row = 0; row < tensor.shape[0]; ++row) {
      out.push_back(tensor.values[static_cast<size_t>(row * columns)]);
    }
  }
  return out;
}

// What the fake backend holds: the first element of every row, after checking that a row is even.
std::vector<float> rows_of(const ops::LinearWeight& weight) {
  const int64_t in = weight.in_features;
  std::vector<float> all(static_cast<size_t>(weight.out_features * in));
  to_float(static_cast<const std::byte*>(weight.data), weight.dtype, weight.out_features * in,
           all.data());
  std::vector<float> out;
  for (int64_t row = 0; row < weight.out_features; ++row) {
    for (int64_t i = 0; i < in; ++i) {
      EXPECT_EQ(all[static_cast<size_t>(row * in + i)], all[static_cast<size_t>(row * in)]);
    }
    out.push_back(all[static_cast<size_t>(row * in)]);
  }
  return out;
}

std::vector<float> floats(const float* data, size_t count) { return {data, data + count}; }

class WeightsTest : public ::testing::Test {
 protected:
  void write(const TestTensors& tensors, size_t pad = 0) {
    dir_.write("model.safetensors", safetensors_file(tensors, pad));
  }
  Weights load(const ModelSpec& spec) { return load_weights(dir_.path(), spec, fake_.ops(), {}); }
  void refused(ErrorCode code, const ModelSpec& spec, const std::vector<std::string>& parts) {
    expect_error(code, parts, [&] { load(spec); });
    EXPECT_EQ(fake_.alive(), 0U);
  }

  TempDir dir_;
  FakeBackend fake_;
};

TEST_F(WeightsTest, LoadsEveryTypeAtEveryAlignment) {
  const ModelSpec spec = small_spec();
  for (const auto& [name, dtype] : {std::pair{"F32", ops::DType::kF32},
                                    {"F16", ops::DType::kF16},
                                    {"BF16", ops::DType::kBF16}}) {
    for (size_t pad = 0; pad < 8; ++pad) {
      const TestTensors tensors = make_tensors(spec, name);
      write(tensors, pad);
      const Weights weights = load(spec);
      EXPECT_EQ(weights.head.dtype, dtype);
      EXPECT_EQ(weights.embedding_dtype, dtype);
      EXPECT_EQ(rows_of(weights.head), rows_of(tensors, {"lm_head.weight"}));
      std::vector<float> embedding(7 * 6);
      to_float(static_cast<const std::byte*>(weights.embedding), dtype, 7 * 6, embedding.data());
      EXPECT_EQ(embedding, tensors.at("model.embed_tokens.weight").values);
      EXPECT_EQ(floats(weights.final_norm, 6), rows_of(tensors, {"model.norm.weight"}));
    }
  }
}

TEST_F(WeightsTest, StacksQkvAndGateUp) {
  const ModelSpec spec = small_spec();
  const TestTensors tensors = make_tensors(spec, "BF16");
  write(tensors);
  const Weights weights = load(spec);
  ASSERT_EQ(weights.layers.size(), 2U);
  EXPECT_EQ(fake_.silu_weights(), 2);
  for (int i = 0; i < 2; ++i) {
    const auto& layer = weights.layers[static_cast<size_t>(i)];
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    const std::string attn = prefix + "self_attn.";
    EXPECT_EQ(rows_of(layer.qkv), rows_of(tensors, {attn + "q_proj.weight", attn + "k_proj.weight",
                                                    attn + "v_proj.weight"}));
    EXPECT_EQ(layer.qkv.in_features, 6);
    EXPECT_EQ(layer.qkv.out_features, spec.qkv_features());
    EXPECT_EQ(layer.qkv.bias, nullptr);
    EXPECT_EQ(layer.o.in_features, 8);
    EXPECT_EQ(rows_of(layer.gate_up),
              rows_of(tensors, {prefix + "mlp.gate_proj.weight", prefix + "mlp.up_proj.weight"}));
    EXPECT_EQ(rows_of(layer.down), rows_of(tensors, {prefix + "mlp.down_proj.weight"}));
    EXPECT_EQ(layer.down.in_features, 5);
    EXPECT_EQ(floats(layer.attn_norm, 6), rows_of(tensors, {prefix + "input_layernorm.weight"}));
    EXPECT_EQ(floats(layer.mlp_norm, 6),
              rows_of(tensors, {prefix + "post_attention_layernorm.weight"}));
    EXPECT_EQ(layer.q_norm, nullptr);
  }
}

TEST_F(WeightsTest, LoadsBiasesAndQkNorm) {
  ModelSpec spec = small_spec();
  spec.qkv_bias = spec.o_bias = spec.mlp_bias = spec.qk_norm = true;
  const TestTensors tensors = make_tensors(spec, "F16");
  write(tensors);
  const Weights weights = load(spec);
  const auto& layer = weights.layers[1];
  const std::string attn = "model.layers.1.self_attn.";
  const std::string mlp = "model.layers.1.mlp.";
  EXPECT_EQ(floats(layer.qkv.bias, 16),
            rows_of(tensors, {attn + "q_proj.bias", attn + "k_proj.bias", attn + "v_proj.bias"}));
  EXPECT_EQ(floats(layer.o.bias, 6), rows_of(tensors, {attn + "o_proj.bias"}));
  EXPECT_EQ(floats(layer.gate_up.bias, 10),
            rows_of(tensors, {mlp + "gate_proj.bias", mlp + "up_proj.bias"}));
  EXPECT_EQ(floats(layer.down.bias, 6), rows_of(tensors, {mlp + "down_proj.bias"}));
  EXPECT_EQ(floats(layer.q_norm, 2), rows_of(tensors, {attn + "q_norm.weight"}));
  EXPECT_EQ(floats(layer.k_norm, 2), rows_of(tensors, {attn + "k_norm.weight"}));
}

TEST_F(WeightsTest, TakesInternlm2WqkvApart) {
  ModelSpec spec = small_spec();
  spec.fused_wqkv = spec.qkv_bias = spec.o_bias = true;
  const TestTensors tensors = make_tensors(spec, "F16");
  write(tensors);
  const Weights weights = load(spec);
  const std::string layer = "model.layers.1.";
  // kv head 0 has rows 0..7 (q 0-3, k 4-5, v 6-7), kv head 1 rows 8..15.
  const std::vector<int> order = {0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
  for (const bool bias : {false, true}) {
    const std::string name = layer + "attention.wqkv." + (bias ? "bias" : "weight");
    const std::vector<float> stored = rows_of(tensors, {name});
    std::vector<float> expected;
    for (const int row : order) expected.push_back(stored[static_cast<size_t>(row)]);
    EXPECT_EQ(bias ? floats(weights.layers[1].qkv.bias, 16) : rows_of(weights.layers[1].qkv),
              expected);
  }
  EXPECT_EQ(rows_of(weights.layers[1].gate_up),
            rows_of(tensors, {layer + "feed_forward.w1.weight", layer + "feed_forward.w3.weight"}));
  EXPECT_EQ(rows_of(weights.layers[1].down), rows_of(tensors, {layer + "feed_forward.w2.weight"}));
  EXPECT_EQ(rows_of(weights.head), rows_of(tensors, {"output.weight"}));
}

TEST_F(WeightsTest, MakesTheHeadOfTiedEmbeddings) {
  ModelSpec spec = small_spec();
  spec.tied_embeddings = true;
  TestTensors tensors = make_tensors(spec, "F32");
  EXPECT_EQ(tensors.count("lm_head.weight"), 0U);
  // Some writers store the head all the same; it must not count.
  tensors["lm_head.weight"] = {"F32", {1}, {9}};
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {1}, {1}};
  write(tensors);
  const Weights weights = load(spec);
  EXPECT_EQ(weights.embedding, nullptr);
  EXPECT_EQ(rows_of(weights.head), rows_of(tensors, {"model.embed_tokens.weight"}));
}

TEST_F(WeightsTest, ConvertsMixedTypesOfAFusedWeight) {
  const ModelSpec spec = small_spec();
  TestTensors tensors = make_tensors(spec, "F16");
  tensors["model.layers.0.self_attn.k_proj.weight"].dtype = "BF16";
  tensors["model.layers.0.mlp.up_proj.weight"].dtype = "F32";
  write(tensors, 1);
  const Weights weights = load(spec);
  const auto& layer = weights.layers[0];
  EXPECT_EQ(layer.qkv.dtype, ops::DType::kF32);
  EXPECT_EQ(layer.gate_up.dtype, ops::DType::kF32);
  EXPECT_EQ(layer.o.dtype, ops::DType::kF16);
  const std::string attn = "model.layers.0.self_attn.";
  EXPECT_EQ(rows_of(layer.qkv), rows_of(tensors, {attn + "q_proj.weight", attn + "k_proj.weight",
                                                  attn + "v_proj.weight"}));
  EXPECT_EQ(rows_of(layer.gate_up), rows_of(tensors, {"model.layers.0.mlp.gate_proj.weight",
                                                      "model.layers.0.mlp.up_proj.weight"}));
}

TEST_F(WeightsTest, CountsParametersBytesAndProgress) {
  const ModelSpec spec = small_spec();
  const TestTensors tensors = make_tensors(spec, "F16");
  write(tensors);
  int64_t parameters = 0;
  int64_t norms = 0;
  for (const auto& [name, tensor] : tensors) {
    parameters += static_cast<int64_t>(tensor.values.size());
    if (tensor.shape.size() == 1) norms += tensor.shape[0];
  }
  std::vector<std::pair<int64_t, int64_t>> calls;
  const Weights weights =
      load_weights(dir_.path(), spec, fake_.ops(),
                   [&](int64_t done, int64_t total) { calls.emplace_back(done, total); });
  EXPECT_EQ(weights.num_parameters, parameters);
  EXPECT_EQ(weights.bytes, 2 * parameters + 2 * norms);  // norms are kept as float32
  ASSERT_GT(calls.size(), 2U);
  EXPECT_EQ(calls.front(), (std::pair<int64_t, int64_t>{0, 2 * parameters}));
  EXPECT_EQ(calls.back(), (std::pair<int64_t, int64_t>{2 * parameters, 2 * parameters}));
  for (size_t i = 1; i < calls.size(); ++i) EXPECT_GT(calls[i].first, calls[i - 1].first);
}

TEST_F(WeightsTest, LoadsShards) {
  const ModelSpec spec = small_spec();
  const TestTensors tensors = make_tensors(spec, "F16");
  TestTensors first;
  TestTensors second;
  std::string map;
  for (const auto& [name, tensor] : tensors) {
    const bool even = map.size() % 2 == 0;
    (even ? first : second)[name] = tensor;
    map += (map.empty() ? "\"" : ",\"") + name + (even ? "\":\"1.st\"" : "\":\"2.st\"");
  }
  ASSERT_FALSE(first.empty() || second.empty());
  dir_.write("1.st", safetensors_file(first));
  dir_.write("2.st", safetensors_file(second, 3));
  dir_.write("model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
  EXPECT_EQ(rows_of(load(spec).head), rows_of(tensors, {"lm_head.weight"}));
}

TEST_F(WeightsTest, ListsMissingAndUnexpectedTensors) {
  const ModelSpec spec = small_spec();
  TestTensors tensors = make_tensors(spec, "F16");
  tensors.erase("lm_head.weight");
  tensors.erase("model.layers.1.mlp.up_proj.weight");
  tensors["model.layers.0.self_attn.q_proj.bias"] = {"F16", {1}, {1}};
  write(tensors);
  refused(ErrorCode::kInvalidModel, spec,
          {"do not fit config.json (TestForCausalLM, 2 layers)",
           "2 missing tensors: ", "\"model.layers.1.mlp.up_proj.weight\"", "\"lm_head.weight\"",
           "1 unexpected tensor: ", "\"model.layers.0.self_attn.q_proj.bias\""});
  ModelSpec deeper = small_spec();
  deeper.num_layers = 4;
  write(make_tensors(spec, "F16"));
  refused(ErrorCode::kInvalidModel, deeper,
          {"18 missing tensors: ", "\"model.layers.2.input_layernorm.weight\"", "and 10 more"});
  ModelSpec shallower = small_spec();
  shallower.num_layers = 1;
  refused(ErrorCode::kInvalidModel, shallower, {"9 unexpected tensors: ", "and 1 more"});
}

TEST_F(WeightsTest, NamesWrongShapes) {
  const ModelSpec spec = small_spec();
  TestTensors tensors = make_tensors(spec, "F16");
  tensors["lm_head.weight"].shape = {6, 7};
  write(tensors);
  refused(ErrorCode::kInvalidModel, spec,
          {"tensor \"lm_head.weight\" in model.safetensors has shape [6, 7]", "needs [7, 6]"});
  tensors["model.norm.weight"].shape = {6, 1};
  write(tensors);
  refused(ErrorCode::kInvalidModel, spec, {"and 1 more"});
}

TEST_F(WeightsTest, RefusesOtherElementTypes) {
  const ModelSpec spec = small_spec();
  TestTensors tensors = make_tensors(spec, "F32");
  tensors["model.norm.weight"].dtype = "I32";
  write(tensors);
  refused(ErrorCode::kUnsupported, spec,
          {"model.safetensors: tensor \"model.norm.weight\" has dtype I32", "F32, F16 or BF16"});
}

TEST_F(WeightsTest, ReleasesEverythingWhenMemoryRunsOut) {
  ModelSpec spec = small_spec();
  spec.qkv_bias = spec.qk_norm = true;
  write(make_tensors(spec, "F16"));
  { const Weights weights = load(spec); }
  const int needed = fake_.allocations();
  ASSERT_GT(needed, 20);
  for (int n = 1; n <= needed; ++n) {
    SCOPED_TRACE(n);
    fake_.fail_at(n);
    refused(ErrorCode::kOutOfMemory, spec, {"no memory left"});
  }
}

TEST_F(WeightsTest, ReleasesOnceAfterAMove) {
  const ModelSpec spec = small_spec();
  write(make_tensors(spec, "F16"));
  {
    Weights first = load(spec);
    const Weights second = std::move(first);
    EXPECT_EQ(second.layers.size(), 2U);
    EXPECT_NE(second.head.data, nullptr);
  }
  EXPECT_EQ(fake_.alive(), 0U);
}

TEST_F(WeightsTest, StopsWhenTheCallbackThrows) {
  const ModelSpec spec = small_spec();
  write(make_tensors(spec, "F16"));
  int calls = 0;
  EXPECT_THROW(load_weights(dir_.path(), spec, fake_.ops(),
                            [&](int64_t, int64_t) {
                              if (++calls == 5) throw std::runtime_error("stop");
                            }),
               std::runtime_error);
  EXPECT_EQ(fake_.alive(), 0U);
}

}  // namespace
}  // namespace treadle::loader
