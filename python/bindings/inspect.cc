// What a model directory would load as and how much would fit, without touching its weights.
#include <algorithm>
#include <memory>
#include <string>

#include <pybind11/stl.h>

#include <treadle/version.h>

#include "bindings.h"
#include "engine/factory.h"
#include "engine/options.h"
#include "loader/loader.h"
#include "model/decoder.h"
#include "model/model_options.h"

namespace py = pybind11;

namespace treadle::python {
namespace {

const char* rope_name(model::RopeKind kind) {
  switch (kind) {
    case model::RopeKind::kDefault:
      return "default";
    case model::RopeKind::kLinear:
      return "linear";
    case model::RopeKind::kDynamicNtk:
      return "dynamic";
    case model::RopeKind::kLlama3:
      return "llama3";
    case model::RopeKind::kYarn:
      return "yarn";
  }
  return "unknown";
}

/// Weights that the spec asks for; what a checkpoint must hold.
int64_t num_parameters(const model::ModelSpec& s) {
  const int64_t hidden = s.hidden_size;
  const int64_t inter = s.intermediate_size;
  const int64_t qkv = s.qkv_features();
  const int64_t attention = int64_t{s.num_heads} * s.head_dim;
  int64_t layer = hidden * qkv + attention * hidden + 3 * hidden * inter + 2 * hidden;
  if (s.qkv_bias) layer += qkv;
  if (s.o_bias) layer += hidden;
  if (s.mlp_bias) layer += 2 * inter + hidden;
  if (s.qk_norm) layer += 2 * int64_t{s.head_dim};
  const int64_t embeddings = int64_t{s.vocab_size} * hidden * (s.tied_embeddings ? 1 : 2);
  return embeddings + s.num_layers * layer + hidden;
}

py::dict describe(const model::ModelSpec& s) {
  using namespace py::literals;
  return py::dict(
      "architecture"_a = s.architecture, "family"_a = s.family, "num_layers"_a = s.num_layers,
      "hidden_size"_a = s.hidden_size, "intermediate_size"_a = s.intermediate_size,
      "num_heads"_a = s.num_heads, "num_kv_heads"_a = s.num_kv_heads, "head_dim"_a = s.head_dim,
      "vocab_size"_a = s.vocab_size, "max_position_embeddings"_a = s.max_position_embeddings,
      "norm_eps"_a = s.norm_eps, "rope"_a = rope_name(s.rope.kind), "rope_base"_a = s.rope.base,
      "rope_factor"_a = s.rope.factor, "rope_original_len"_a = s.rope.original_len,
      "rotary_dim"_a = s.rope.rotary_dim, "qkv_bias"_a = s.qkv_bias, "o_bias"_a = s.o_bias,
      "mlp_bias"_a = s.mlp_bias, "qk_norm"_a = s.qk_norm, "tied_embeddings"_a = s.tied_embeddings,
      "logn_len"_a = s.logn_len, "sliding_window"_a = s.sliding_window,
      "weight_dtype"_a = ops::dtype_name(s.weight_dtype), "bos_token_id"_a = s.bos_token_id,
      "eos_token_ids"_a = s.eos_token_ids);
}

struct Plan {
  int64_t weight_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t free_bytes = 0;
  int64_t kv_bytes_per_token = 0;
  int64_t kv_blocks = 0;  // 0: not even one fits
  int32_t session_len = 0;
};

/// What Engine::load would make of the memory that is free now.
Plan plan(const model::ModelSpec& spec, EngineConfig config) {
  config.num_threads = 1;  // sizes do not depend on it, and no threads are needed here
  if (config.max_prefill_token_num == 0) config.max_prefill_token_num = 512;
  ops::Ops ops = select_backend(config);
  const auto destroy = [](ops::Ops* table) { table->destroy(table->self); };
  const std::unique_ptr<ops::Ops, decltype(destroy)> guard(&ops, destroy);
  const int32_t session_len = wanted_session_len(config, spec);
  const ops::KvPool shape{.dtype = kv_dtype(config, spec.weight_dtype),
                          .num_layers = spec.num_layers,
                          .kv_heads = spec.num_kv_heads,
                          .head_dim = spec.head_dim};
  const model::DecoderLimits limits{
      .max_tokens = config.max_prefill_token_num + config.max_batch_size,
      .max_rows = config.max_prefill_token_num + 2 * config.max_batch_size,
      .max_sequences = config.max_batch_size,
      .session_len = session_len};
  Plan p;
  p.weight_bytes = num_parameters(spec) * static_cast<int64_t>(ops::dtype_size(spec.weight_dtype));
  p.workspace_bytes = static_cast<int64_t>(model::Decoder::workspace_bytes(spec, ops, limits));
  p.free_bytes = static_cast<int64_t>(ops.free_memory(ops.self));
  p.kv_bytes_per_token = static_cast<int64_t>(shape.block_bytes()) / ops::kBlockTokens;
  const int64_t left = std::max<int64_t>(0, p.free_bytes - p.weight_bytes - p.workspace_bytes);
  try {
    p.kv_blocks = pool_blocks(config, shape, session_len, static_cast<size_t>(left));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
  }
  p.session_len =
      static_cast<int32_t>(std::min<int64_t>(session_len, p.kv_blocks * ops::kBlockTokens));
  return p;
}

py::dict inspect(const std::string& path, const EngineConfig& config) {
  model::ModelSpec spec;
  Plan p;
  {
    py::gil_scoped_release unlocked;
    spec = loader::read_spec(path);
    model::apply_options(spec, config.rope_scaling_factor, config.use_logn_attn);
    p = plan(spec, config);
  }
  py::dict result = describe(spec);
  result["num_parameters"] = num_parameters(spec);
  result["weight_bytes"] = p.weight_bytes;
  result["workspace_bytes"] = p.workspace_bytes;
  result["free_bytes"] = p.free_bytes;
  result["kv_dtype"] = ops::dtype_name(kv_dtype(config, spec.weight_dtype));
  result["kv_bytes_per_token"] = p.kv_bytes_per_token;
  result["kv_block_tokens"] = ops::kBlockTokens;
  result["kv_blocks"] = p.kv_blocks;
  result["session_len"] = p.session_len;
  return result;
}

}  // namespace

void bind_inspect(py::module_& m) {
  m.def("inspect", &inspect, py::arg("path"), py::arg("config"),
        "What config.json means, and what loading it with these options would take.");
  m.def("version", &version);
  m.def("backends", &backends);
}

}  // namespace treadle::python
