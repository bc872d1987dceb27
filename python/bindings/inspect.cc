// What a model directory would load as and how much would fit, without touching its weights.
#include <algorithm>
#include <memory>
#include <string>

#include <pybind11/stl.h>

#include <treadle/error.h>
#include <treadle/version.h>

#include "bindings.h"
#include "engine/device.h"
#include "engine/options.h"
#include "engine/prepare.h"
#include "loader/loader.h"
#include "loader/workspace_writer.h"
#include "model/decoder.h"
#include "model/model_size.h"

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
      "bos_token_id"_a = s.bos_token_id, "eos_token_ids"_a = s.eos_token_ids);
}

struct Plan {
  std::string device;
  std::string device_note;
  ops::DType dtype = ops::DType::kF32;  // of weights
  ops::DType kv_dtype = ops::DType::kF32;
  bool kv_static_ranges = false;
  int64_t weight_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t free_bytes = 0;
  int64_t kv_bytes_per_token = 0;
  int64_t kv_blocks = 0;  // 0: not even one fits
  int32_t session_len = 0;
};

/// What Engine::load would make of the memory that is free now.
Plan plan(const std::string& path, const model::ModelSpec& spec, EngineConfig config) {
  check_config(config);
  config.num_threads = 1;  // sizes do not depend on it, and no threads are needed here
  ChosenBackend chosen = select_backend(config, spec);
  const ops::Ops& ops = chosen.ops;
  const auto destroy = [](ops::Ops* table) { table->destroy(table->self); };
  const std::unique_ptr<ops::Ops, decltype(destroy)> guard(&chosen.ops, destroy);
  config = with_defaults(config, spec, ops.defaults);
  Plan p;
  p.device = ops.name;
  p.device_note = chosen.note;
  p.dtype = ops.act_dtype == ops::DType::kF32 ? spec.weight_dtype : ops.act_dtype;
  p.kv_dtype = kv_dtype(config, ops, spec.weight_dtype);
  p.kv_static_ranges = p.kv_dtype == ops::DType::kI8 && loader::has_kv_ranges(path);
  const ops::KvPool shape{.dtype = p.kv_dtype,
                          .static_scales = p.kv_static_ranges,
                          .num_layers = spec.num_layers,
                          .kv_heads = spec.num_kv_heads,
                          .head_dim = spec.head_dim};
  p.weight_bytes = model::num_parameters(spec) * static_cast<int64_t>(ops::dtype_size(p.dtype));
  p.workspace_bytes =
      static_cast<int64_t>(model::Decoder::workspace_bytes(spec, ops, decoder_limits(config)));
  p.free_bytes = static_cast<int64_t>(ops.free_memory(ops.self));
  p.kv_bytes_per_token = static_cast<int64_t>(shape.block_bytes()) / ops::kBlockTokens;
  const int64_t taken =
      p.weight_bytes + p.workspace_bytes + static_cast<int64_t>(shape.shared_bytes());
  const int64_t left = std::max<int64_t>(0, p.free_bytes - taken);
  try {
    p.kv_blocks = pool_blocks(config, ops.defaults, shape, static_cast<size_t>(left));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
  }
  p.session_len =
      static_cast<int32_t>(std::min<int64_t>(config.session_len, p.kv_blocks * ops::kBlockTokens));
  return p;
}

py::dict inspect(const std::string& path, const EngineConfig& config) {
  Prepared prepared;
  Plan p;
  {
    py::gil_scoped_release unlocked;
    prepared = prepare(path, config);
    p = plan(path, prepared.spec, prepared.config);
  }
  const model::ModelSpec& spec = prepared.spec;
  py::dict result = describe(spec);
  result["model_name"] = prepared.model_name;
  result["device"] = p.device;
  result["device_note"] = p.device_note;
  result["num_parameters"] = model::num_parameters(spec);
  result["weight_dtype"] = ops::dtype_name(p.dtype);
  result["weight_bytes"] = p.weight_bytes;
  result["workspace_bytes"] = p.workspace_bytes;
  result["free_bytes"] = p.free_bytes;
  result["kv_dtype"] = ops::dtype_name(p.kv_dtype);
  result["kv_static_ranges"] = p.kv_static_ranges;
  result["kv_bytes_per_token"] = p.kv_bytes_per_token;
  result["kv_block_tokens"] = ops::kBlockTokens;
  result["kv_blocks"] = p.kv_blocks;
  result["session_len"] = p.session_len;
  return result;
}

/// Writes a workspace's config.ini and weights to `out`.
void convert(const std::string& path, const std::string& out, const std::string& model_name,
             const EngineConfig& options, const py::object& on_progress) {
  const loader::WorkspaceConfig settings{.model_name = model_name,
                                         .session_len = options.session_len,
                                         .max_batch_size = options.max_batch_size,
                                         .max_prefill_token_num = options.max_prefill_token_num,
                                         .cache_max_entry_count = options.cache_max_entry_count,
                                         .quant_policy = std::max(options.quant_policy, 0),
                                         .rope_scaling_factor = options.rope_scaling_factor,
                                         .use_logn_attn = options.use_logn_attn,
                                         .ignored = {}};
  check_config(options);
  const auto report = [&on_progress](int64_t done, int64_t total) {
    py::gil_scoped_acquire locked;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!on_progress.is_none()) on_progress(done, total);
  };
  py::gil_scoped_release unlocked;
  loader::write_workspace(path, out, settings, report);
}

/// (name, why this build cannot run on it) of each GPU, why there are none, and the library that is
/// loaded to run on one.
py::dict gpus() {
  ops::GpuReport report;
  {
    py::gil_scoped_release unlocked;
    report = ops::cuda_gpus();
  }
  py::list list;
  for (const ops::Gpu& gpu : report.gpus) list.append(py::make_tuple(gpu.name, gpu.problem));
  using namespace py::literals;
  return py::dict("gpus"_a = list, "problem"_a = report.problem, "library"_a = ops::cuda_library());
}

}  // namespace

void bind_inspect(py::module_& m) {
  m.def("inspect", &inspect, py::arg("path"), py::arg("config"),
        "What config.json means, and what loading it with these options would take.");
  m.def("convert", &convert, py::arg("path"), py::arg("out"), py::arg("model_name"),
        py::arg("options"), py::kw_only(), py::arg("on_progress") = py::none(),
        "Writes config.ini and the weights of a workspace to an existing directory.");
  m.def("version", &version);
  m.def("backends", &backends);
  m.def("gpus", &gpus, "GPUs that the driver offers, by their number in \"cuda:N\".");
}

}  // namespace treadle::python
