// Workspaces: the weights that come back from one are those of the checkpoint, and damage is named.
#include <bit>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "loader/checkpoint_source.h"
#include "loader/int4.h"
#include "loader/loader.h"
#include "loader/safetensors.h"
#include "loader/workspace_layout.h"
#include "loader/workspace_writer.h"
#include "loader_testing.h"
#include "model/weights.h"

namespace treadle::loader {
namespace {

namespace fs = std::filesystem;
using model::ModelSpec;
using model::QuantMethod;
using model::QuantSpec;
using testing::expect_error;
using testing::FakeBackend;
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

ModelSpec int4_spec(QuantSpec quant) {
  ModelSpec spec = small_spec();
  spec.hidden_size = 64;
  spec.intermediate_size = 128;
  spec.head_dim = 16;
  spec.vocab_size = 24;
  spec.qkv_bias = true;
  spec.quant = quant;
  return spec;
}

// The file a shard's tensor is in, and everything of it.
std::string file_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class WorkspaceTest : public ::testing::Test {
 protected:
  // Random tensors of a checkpoint. Layers of `names` that are marked quantised are random words
  // that the format allows.
  void make(const ModelSpec& spec, const ModelNames& names, const std::string& dtype) {
    tensors_.clear();
    for (const ExpectedTensor& expected : expected_tensors(spec, names)) {
      TestTensor& tensor = tensors_[expected.name];
      const bool floats = expected.kind == ExpectedTensor::Kind::kFloat;
      tensor = {floats ? dtype : "I32", expected.shape, {}};
      int64_t count = 1;
      for (const int64_t n : expected.shape) count *= n;
      for (int64_t i = 0; i < count; ++i) {
        const auto small = static_cast<float>(static_cast<int>(random_() % 201) - 100);
        // Without the highest bit of any nibble: no zero point is 15.
        tensor.values.push_back(floats ? small : word(uint32_t(random_()) & 0x77777777U));
      }
    }
  }

  void quantize(LinearName& linear, const QuantSpec& quant) { linear.quant = quant; }

  // The index of the groups, and the shape that compressed-tensors stores.
  void fix(const LinearName& linear) {
    const int64_t size = linear.quant.group_size > 0 ? linear.quant.group_size : linear.in;
    if (const auto at = tensors_.find(linear.name + ".g_idx"); at != tensors_.end()) {
      for (int64_t k = 0; k < linear.in; ++k) {
        at->second.values[size_t(k)] = word(uint32_t(k % (linear.in / size)));
      }
    }
    if (const auto at = tensors_.find(linear.name + ".weight_shape"); at != tensors_.end()) {
      at->second.values = {word(uint32_t(linear.out)), word(uint32_t(linear.in))};
    }
  }

  static float word(uint32_t value) { return std::bit_cast<float>(value); }

  void write(size_t pad = 0) {
    source_.write("model.safetensors", testing::safetensors_file(tensors_, pad));
  }

  void convert(const ModelSpec& spec) {
    std::error_code ignored;
    fs::remove_all(rank_directory(out_.path(), 0), ignored);
    const CheckpointSource source(source_.path(), spec);
    int64_t last = -1;
    write_workspace_weights(source, spec, out_.path(), [&](int64_t done, int64_t total) {
      EXPECT_GE(done, last);
      EXPECT_EQ(total, source.bytes());
      last = done;
    });
    EXPECT_EQ(last, source.bytes());
    out_.write("config.ini", "[llama]\n");
  }

  // Loads both and compares all that a backend gets to see.
  void expect_same(const ModelSpec& spec) {
    const model::Weights want = load_weights(source_.path(), spec, fake_.ops(), {});
    const model::Weights got = load_weights(out_.path(), spec, fake_.ops(), {});
    EXPECT_EQ(got.num_parameters, want.num_parameters);
    EXPECT_EQ(got.bytes, want.bytes);
    EXPECT_EQ(got.embedding_dtype, want.embedding_dtype);
    ASSERT_EQ(got.embedding == nullptr, want.embedding == nullptr);
    const size_t table = size_t(spec.vocab_size) * size_t(spec.hidden_size);
    if (want.embedding != nullptr) {
      same_bytes(got.embedding, want.embedding, table * ops::dtype_size(want.embedding_dtype));
    }
    same(got.head, want.head);
    const auto hidden = size_t(spec.hidden_size) * sizeof(float);
    const auto head = size_t(spec.head_dim) * sizeof(float);
    same_bytes(got.final_norm, want.final_norm, hidden);
    ASSERT_EQ(got.layers.size(), want.layers.size());
    for (size_t i = 0; i < got.layers.size(); ++i) {
      SCOPED_TRACE("layer " + std::to_string(i));
      const model::LayerWeights& a = got.layers[i];
      const model::LayerWeights& b = want.layers[i];
      same(a.qkv, b.qkv);
      same(a.o, b.o);
      same(a.gate_up, b.gate_up);
      same(a.down, b.down);
      same_bytes(a.attn_norm, b.attn_norm, hidden);
      same_bytes(a.mlp_norm, b.mlp_norm, hidden);
      same_bytes(a.q_norm, b.q_norm, head);
      same_bytes(a.k_norm, b.k_norm, head);
    }
  }

  static void same(const ops::LinearWeight& a, const ops::LinearWeight& b) {
    ASSERT_EQ(a.dtype, b.dtype);
    ASSERT_EQ(a.in_features, b.in_features);
    ASSERT_EQ(a.out_features, b.out_features);
    const auto rows = size_t(b.out_features);
    same_bytes(a.data, b.data, rows * size_t(b.in_features) * ops::dtype_size(b.dtype));
    same_bytes(a.bias, b.bias, rows * sizeof(float));
  }

  static void same_bytes(const void* a, const void* b, size_t bytes) {
    ASSERT_EQ(a == nullptr, b == nullptr);
    if (a != nullptr) {
      EXPECT_EQ(std::memcmp(a, b, bytes), 0);
    }
  }

  // A 4-bit checkpoint of all linear layers but the head and one of layer 1, and its workspace.
  ModelSpec make_int4(const QuantSpec& quant) {
    const ModelSpec spec = int4_spec(quant);
    ModelNames names = tensor_names(spec);
    std::vector<LinearName*> linears;
    for (LayerNames& layer : names.layers) {
      for (LinearName& part : layer.qkv) linears.push_back(&part);
      for (LinearName* part : {&layer.gate, &layer.up, &layer.down}) linears.push_back(part);
    }
    for (LinearName* linear : linears) quantize(*linear, quant);
    make(spec, names, "F16");
    for (const LinearName* linear : linears) fix(*linear);
    write();
    convert(spec);
    return spec;
  }

  std::string shard(const std::string& name) const {
    return (fs::path(rank_directory(out_.path(), 0)) / name).string();
  }
  // Overwrites bytes of a tensor in its shard.
  void poke(const std::string& file, const std::string& name, size_t at, const std::string& bytes) {
    std::string all = file_bytes(shard(file));
    const std::vector<Tensor> tensors = parse_safetensors(testing::as_span(all), file);
    for (const Tensor& tensor : tensors) {
      if (tensor.name != name) continue;
      const auto begin = size_t(tensor.data.data() - testing::as_span(all).data());
      all.replace(begin + at, bytes.size(), bytes);
      std::ofstream(shard(file), std::ios::binary) << all;
      return;
    }
    FAIL() << "no tensor " << name;
  }
  void refused(ErrorCode code, const ModelSpec& spec, const std::vector<std::string>& parts) {
    expect_error(code, parts, [&] { load_weights(out_.path(), spec, fake_.ops(), {}); });
    EXPECT_EQ(fake_.alive(), 0U);
  }

  std::minstd_rand random_;
  TestTensors tensors_;
  TempDir source_;
  TempDir out_;
  FakeBackend fake_;
};

TEST_F(WorkspaceTest, KeepsEveryTypeAndAlignment) {
  const ModelSpec spec = small_spec();
  for (const char* dtype : {"F32", "F16", "BF16"}) {
    for (size_t pad = 0; pad < 4; ++pad) {
      make(spec, tensor_names(spec), dtype);
      write(pad);
      convert(spec);
      expect_same(spec);
    }
  }
}

TEST_F(WorkspaceTest, KeepsEveryFeature) {
  ModelSpec biased = small_spec();
  biased.qkv_bias = biased.o_bias = biased.mlp_bias = biased.qk_norm = true;
  ModelSpec tied = small_spec();
  tied.tied_embeddings = true;
  ModelSpec fused = small_spec();
  fused.fused_wqkv = fused.qkv_bias = true;
  for (const ModelSpec& spec : {biased, tied, fused}) {
    make(spec, tensor_names(spec), "BF16");
    write();
    convert(spec);
    expect_same(spec);
  }
}

TEST_F(WorkspaceTest, KeepsMixedTypes) {
  const ModelSpec spec = small_spec();
  make(spec, tensor_names(spec), "BF16");
  tensors_["model.layers.0.self_attn.k_proj.weight"].dtype = "F16";
  tensors_["model.layers.1.mlp.up_proj.weight"].dtype = "F32";
  tensors_["model.layers.1.input_layernorm.weight"].dtype = "F32";
  tensors_["lm_head.weight"].dtype = "F32";
  write();
  convert(spec);
  expect_same(spec);
}

TEST_F(WorkspaceTest, KeepsFourBitWeights) {
  for (QuantSpec quant :
       std::vector<QuantSpec>{{.method = QuantMethod::kAwq},
                              {.method = QuantMethod::kGptq, .zero_less_one = true},
                              {.method = QuantMethod::kGptq, .group_index = true},
                              {.method = QuantMethod::kPacked, .symmetric = true},
                              {.method = QuantMethod::kPacked}}) {
    for (const int32_t size : {32, 0}) {
      SCOPED_TRACE(std::to_string(int(quant.method)) + " groups of " + std::to_string(size));
      quant.group_size = size;
      expect_same(make_int4(quant));
    }
  }
}

TEST_F(WorkspaceTest, StoresWeightsAsTheyAreComputed) {
  const ModelSpec spec = int4_spec({});
  make(spec, tensor_names(spec), "F16");
  write();
  convert(spec);
  const std::string all = file_bytes(shard("layer-00001.safetensors"));
  bool found = false;
  for (const Tensor& tensor : parse_safetensors(testing::as_span(all), "layer")) {
    const auto begin = size_t(tensor.data.data() - testing::as_span(all).data());
    if (!is_padding(tensor.name)) {
      EXPECT_EQ(begin % 64, 0U) << tensor.name;
    }
    if (tensor.name != "layers.1.gate_up.weight") continue;
    found = true;
    EXPECT_EQ(tensor.shape, (std::vector<int64_t>{256, 64}));
    const std::string both = testing::encode(tensors_["model.layers.1.mlp.gate_proj.weight"]) +
                             testing::encode(tensors_["model.layers.1.mlp.up_proj.weight"]);
    ASSERT_EQ(tensor.data.size(), both.size());
    EXPECT_EQ(std::memcmp(tensor.data.data(), both.data(), both.size()), 0);
  }
  EXPECT_TRUE(found);
}

TEST_F(WorkspaceTest, RefusesDamage) {
  const ModelSpec spec =
      make_int4({.method = QuantMethod::kGptq, .group_size = 32, .group_index = true});
  const std::string layer = "layer-00001.safetensors";
  const std::string good = file_bytes(shard(layer));
  const auto restore = [&] { std::ofstream(shard(layer), std::ios::binary) << good; };
  const auto invalid = ErrorCode::kInvalidModel;

  poke(layer, "layers.1.down.zeros", 5, "\x11");
  refused(invalid, spec, {layer, "layers.1.down.zeros", "zero point of 17", "from 0 to 16"});
  restore();
  poke(layer, "layers.1.qkv.scales", 8, std::string("\0\0\xC0\x7F", 4));
  refused(invalid, spec, {layer, "layers.1.qkv.scales", "not finite"});
  restore();
  poke(layer, "layers.1.gate_up.group_of", 4, std::string("\2\0\0\0", 4));
  refused(invalid, spec, {layer, "layers.1.gate_up.group_of", "group 2", "from 0 to 1"});
  restore();
  poke(layer, "layers.1.gate_up.group_of", 4, "\xFF\xFF\xFF\xFF");
  refused(invalid, spec, {"group -1"});
  restore();
  fs::resize_file(shard(layer), good.size() - 1);
  refused(invalid, spec, {layer});
  fs::resize_file(shard(layer), 100);
  refused(invalid, spec, {layer});
  fs::remove(shard(layer));
  refused(ErrorCode::kNotFound, spec, {layer, "missing"});
  restore();
  std::ofstream(shard("model.safetensors.index.json")) << "{}";
  refused(invalid, spec, {"index.json", "weight_map"});
  fs::remove(shard("model.safetensors.index.json"));
  refused(ErrorCode::kNotFound, spec, {"model.safetensors.index.json"});
  fs::remove_all(fs::path(out_.path()) / "weights");
  refused(ErrorCode::kNotFound, spec, {"weights"});
}

TEST_F(WorkspaceTest, RefusesAnotherModelsWeights) {
  const ModelSpec spec = small_spec();
  make(spec, tensor_names(spec), "F16");
  write();
  convert(spec);
  const auto invalid = ErrorCode::kInvalidModel;
  ModelSpec other = spec;
  other.num_layers = 3;
  refused(invalid, other, {"missing tensors", "layers.2.qkv.weight"});
  other.num_layers = 1;
  refused(invalid, other, {"unexpected tensors", "layers.1.attn_norm"});
  other = spec;
  other.num_kv_heads = 1;
  refused(invalid, other, {"layers.0.qkv.weight", "[16, 6]", "[12, 6]"});
  other = spec;
  other.quant = {.method = QuantMethod::kAwq, .group_size = 4};
  other.hidden_size = 8;
  refused(invalid, other, {"[7, 6]", "[7, 8]"});
  // A model without 4-bit weights does not take them.
  const ModelSpec int4 = make_int4({.method = QuantMethod::kAwq, .group_size = 32});
  other = int4;
  other.quant = {};
  refused(invalid, other, {"missing", "layers.0.qkv.weight", "unexpected", "layers.0.qkv.q"});
  other = int4;
  other.quant.group_size = 64;
  refused(invalid, other, {"layers.0.qkv.scales", "[128, 2]", "[128, 1]"});
}

TEST_F(WorkspaceTest, SaysWhatCannotBeWritten) {
  const ModelSpec spec = small_spec();
  make(spec, tensor_names(spec), "F16");
  write();
  const CheckpointSource source(source_.path(), spec);
  out_.write("weights", "in the way");
  expect_error(ErrorCode::kInvalidArgument, {"cannot make", "rank0"},
               [&] { write_workspace_weights(source, spec, out_.path(), {}); });
  fs::remove(out_.file("weights"));
  fs::create_directories(shard("embedding.safetensors"));
  expect_error(ErrorCode::kInvalidArgument, {"cannot write", "embedding.safetensors"},
               [&] { write_workspace_weights(source, spec, out_.path(), {}); });
}

}  // namespace
}  // namespace treadle::loader
