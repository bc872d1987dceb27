// Quantised layers of every format against packers that follow the formats' descriptions.
#include <bit>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "loader/loader.h"
#include "loader/tensor_names.h"
#include "loader_testing.h"
#include "model/weights.h"

namespace treadle::loader {
namespace {

using model::ModelSpec;
using model::QuantMethod;
using model::QuantSpec;
using testing::expect_error;
using testing::FakeBackend;
using testing::TempDir;
using testing::TestTensor;
using testing::TestTensors;

ModelSpec small_spec(QuantSpec quant) {
  ModelSpec spec;
  spec.architecture = "TestForCausalLM";
  spec.num_layers = 1;
  spec.hidden_size = 64;
  spec.intermediate_size = 128;
  spec.num_heads = 4;
  spec.num_kv_heads = 2;
  spec.head_dim = 16;
  spec.vocab_size = 24;
  spec.qkv_bias = true;
  spec.quant = quant;
  return spec;
}

// Numbers of 4 bits, [rows][columns].
struct Nibbles {
  size_t rows = 0;
  size_t columns = 0;
  std::vector<uint32_t> values;
  uint32_t at(size_t r, size_t c) const { return values[r * columns + c]; }
};

TestTensor words(const std::vector<uint32_t>& values, std::vector<int64_t> shape) {
  TestTensor out{"I32", std::move(shape), {}};
  for (const uint32_t value : values) out.values.push_back(std::bit_cast<float>(value));
  return out;
}

// Column order[i] of eight at bits 4 i.
TestTensor pack_columns(const Nibbles& m, const std::vector<size_t>& order) {
  std::vector<uint32_t> out;
  for (size_t r = 0; r < m.rows; ++r) {
    for (size_t c = 0; c < m.columns; c += 8) {
      uint32_t word = 0;
      for (size_t i = 0; i < 8; ++i) word |= m.at(r, c + order[i]) << (4 * i);
      out.push_back(word);
    }
  }
  return words(out, {int64_t(m.rows), int64_t(m.columns / 8)});
}

TestTensor pack_rows(const Nibbles& m) {
  std::vector<uint32_t> out;
  for (size_t r = 0; r < m.rows; r += 8) {
    for (size_t c = 0; c < m.columns; ++c) {
      uint32_t word = 0;
      for (size_t i = 0; i < 8; ++i) word |= m.at(r + i, c) << (4 * i);
      out.push_back(word);
    }
  }
  return words(out, {int64_t(m.rows / 8), int64_t(m.columns)});
}

Nibbles transposed(const Nibbles& m) {
  Nibbles out{m.columns, m.rows, {}};
  for (size_t c = 0; c < m.columns; ++c) {
    for (size_t r = 0; r < m.rows; ++r) out.values.push_back(m.at(r, c));
  }
  return out;
}

const std::vector<size_t> kInOrder = {0, 1, 2, 3, 4, 5, 6, 7};
const std::vector<size_t> kAwqOrder = {0, 2, 4, 6, 1, 3, 5, 7};

class Int4Test : public ::testing::Test {
 protected:
  // Replaces `name`.weight by a quantised layer and returns it as floats, [out][in].
  std::vector<float> quantize(const std::string& name, const QuantSpec& quant) {
    const TestTensor whole = tensors_.at(name + ".weight");
    tensors_.erase(name + ".weight");
    const auto out = size_t(whole.shape[0]);
    const auto in = size_t(whole.shape[1]);
    const size_t size = quant.group_size > 0 ? size_t(quant.group_size) : in;
    const size_t groups = in / size;
    const bool packed = quant.method == QuantMethod::kPacked;
    Nibbles q{out, in, draw(out * in, 0, 15)};
    Nibbles zeros{out, groups, draw(out * groups, quant.zero_less_one ? 1 : 0, 15)};
    if (quant.symmetric) zeros.values.assign(out * groups, 8);
    std::vector<float> scales;
    for (size_t i = 0; i < out * groups; ++i) scales.push_back(float(i % 13 + 1) / 64);
    std::vector<uint32_t> group_of;
    // Inputs of a group are neighbours, or, with desc_act, spread out.
    for (size_t k = 0; k < in; ++k) {
      group_of.push_back(uint32_t(quant.group_index ? k % groups : k / size));
    }
    std::vector<float> want;
    for (size_t n = 0; n < out; ++n) {
      for (size_t k = 0; k < in; ++k) {
        const size_t g = group_of[k];
        want.push_back(float(int(q.at(n, k)) - int(zeros.at(n, g))) * scales[n * groups + g]);
      }
    }
    if (packed) {
      tensors_[name + ".weight_packed"] = pack_columns(q, kInOrder);
      tensors_[name + ".weight_scale"] = {"BF16", {int64_t(out), int64_t(groups)}, scales};
      tensors_[name + ".weight_shape"] = words({uint32_t(out), uint32_t(in)}, {2});
      if (!quant.symmetric) tensors_[name + ".weight_zero_point"] = pack_rows(zeros);
      return want;
    }
    std::vector<float> columns;
    for (size_t g = 0; g < groups; ++g) {
      for (size_t n = 0; n < out; ++n) columns.push_back(scales[n * groups + g]);
    }
    const bool awq = quant.method == QuantMethod::kAwq;
    tensors_[name + ".scales"] = {"F16", {int64_t(groups), int64_t(out)}, columns};
    tensors_[name + ".qweight"] =
        awq ? pack_columns(transposed(q), kAwqOrder) : pack_rows(transposed(q));
    if (quant.zero_less_one) {
      for (uint32_t& zero : zeros.values) --zero;
    }
    tensors_[name + ".qzeros"] = pack_columns(transposed(zeros), awq ? kAwqOrder : kInOrder);
    if (quant.group_index) tensors_[name + ".g_idx"] = words(group_of, {int64_t(in)});
    return want;
  }

  void make(const ModelSpec& spec) {
    tensors_.clear();
    ModelSpec whole = spec;
    whole.quant = {};
    for (const ExpectedTensor& expected : expected_tensors(whole, tensor_names(whole))) {
      int64_t count = 1;
      for (const int64_t n : expected.shape) count *= n;
      tensors_[expected.name] = {"F16", expected.shape, std::vector<float>(size_t(count), 1.0F)};
    }
  }

  void refused(ErrorCode code, const ModelSpec& spec, const std::vector<std::string>& parts) {
    dir_.write("model.safetensors", testing::safetensors_file(tensors_));
    expect_error(code, parts, [&] { load_weights(dir_.path(), spec, fake_.ops(), {}); });
    EXPECT_EQ(fake_.alive(), 0U);
  }

  std::vector<uint32_t> draw(size_t count, uint32_t low, uint32_t high) {
    std::vector<uint32_t> out(count);
    for (uint32_t& value : out) value = low + random_() % (high - low + 1);
    return out;
  }

  std::minstd_rand random_;
  TestTensors tensors_;
  TempDir dir_;
  FakeBackend fake_;
};

const std::string kLayer = "model.layers.0.";
const std::vector<std::string> kQkv = {kLayer + "self_attn.q_proj", kLayer + "self_attn.k_proj",
                                       kLayer + "self_attn.v_proj"};

std::vector<float> held(const ops::LinearWeight& weight) {
  EXPECT_EQ(weight.dtype, ops::DType::kF32);
  const auto* data = static_cast<const float*>(weight.data);
  return {data, data + weight.out_features * weight.in_features};
}

TEST_F(Int4Test, EveryFormatIsExact) {
  const std::vector<QuantSpec> formats = {
      {.method = QuantMethod::kAwq},
      {.method = QuantMethod::kGptq},
      {.method = QuantMethod::kGptq, .zero_less_one = true},
      {.method = QuantMethod::kGptq, .group_index = true, .zero_less_one = true},
      {.method = QuantMethod::kPacked},
      {.method = QuantMethod::kPacked, .symmetric = true}};
  for (QuantSpec quant : formats) {
    for (const int32_t size : {32, 64, 0}) {
      SCOPED_TRACE(std::to_string(int(quant.method)) + " groups of " + std::to_string(size));
      quant.group_size = size;
      const ModelSpec spec = small_spec(quant);
      make(spec);
      std::vector<float> qkv;
      for (const std::string& name : kQkv) {
        const auto part = quantize(name, quant);
        qkv.insert(qkv.end(), part.begin(), part.end());
      }
      const auto down = quantize(kLayer + "mlp.down_proj", quant);
      const auto head = quantize("lm_head", quant);
      for (size_t pad = 0; pad < 3; ++pad) {
        dir_.write("model.safetensors", testing::safetensors_file(tensors_, pad));
        const model::Weights weights = load_weights(dir_.path(), spec, fake_.ops(), {});
        EXPECT_EQ(held(weights.layers[0].qkv), qkv);
        EXPECT_NE(weights.layers[0].qkv.bias, nullptr);
        EXPECT_EQ(held(weights.layers[0].down), down);
        EXPECT_EQ(held(weights.head), head);
        EXPECT_EQ(weights.layers[0].o.dtype, ops::DType::kF16);  // not converted
      }
    }
  }
}

TEST_F(Int4Test, RefusesDamage) {
  const QuantSpec quant{
      .method = QuantMethod::kGptq, .group_size = 32, .group_index = true, .zero_less_one = true};
  const ModelSpec spec = small_spec(quant);
  const std::string down = kLayer + "mlp.down_proj";
  make(spec);
  quantize(down, quant);
  const TestTensors good = tensors_;

  tensors_.erase(down + ".scales");
  refused(ErrorCode::kInvalidModel, spec, {"missing", down + ".scales"});
  tensors_ = good;
  tensors_[down + ".qzeros"].shape = {2, 16};
  refused(ErrorCode::kInvalidModel, spec, {down + ".qzeros", "[2, 16]", "[4, 8]"});
  tensors_ = good;
  tensors_[down + ".qzeros"].values[3] = std::bit_cast<float>(0xF0U);
  refused(ErrorCode::kInvalidModel, spec, {down + ".qzeros", "zero point of 16"});
  tensors_ = good;
  tensors_[down + ".g_idx"].values[3] = std::bit_cast<float>(4U);
  refused(ErrorCode::kInvalidModel, spec, {down + ".g_idx", "group 4", "from 0 to 3"});
  tensors_ = good;
  tensors_[down + ".qweight"].dtype = "F32";
  refused(ErrorCode::kInvalidModel, spec, {down + ".qweight", "F32", "I32"});
  tensors_ = good;
  tensors_[down + ".scales"].dtype = "BF16";
  tensors_[down + ".scales"].values[0] = std::bit_cast<float>(0x7F800000U);
  refused(ErrorCode::kInvalidModel, spec, {down + ".scales", "not finite"});

  tensors_ = good;
  ModelSpec odd = spec;
  odd.quant.group_size = 96;
  refused(ErrorCode::kInvalidModel, odd, {down, "128 inputs", "96"});
  quantize(kQkv[0], quant);
  refused(ErrorCode::kUnsupported, spec, {kQkv[0], kQkv[1], "not both quantised"});
}

}  // namespace
}  // namespace treadle::loader
