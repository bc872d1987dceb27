// What a model directory would load as, read without touching its weights.
#include <string>

#include <pybind11/stl.h>

#include <treadle/version.h>

#include "bindings.h"
#include "loader/loader.h"

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

py::dict inspect(const std::string& path) {
  model::ModelSpec s;
  {
    py::gil_scoped_release unlocked;
    s = loader::read_spec(path);
  }
  using namespace py::literals;
  return py::dict(
      "architecture"_a = s.architecture, "family"_a = s.family, "num_layers"_a = s.num_layers,
      "hidden_size"_a = s.hidden_size, "intermediate_size"_a = s.intermediate_size,
      "num_heads"_a = s.num_heads, "num_kv_heads"_a = s.num_kv_heads, "head_dim"_a = s.head_dim,
      "vocab_size"_a = s.vocab_size, "max_position_embeddings"_a = s.max_position_embeddings,
      "norm_eps"_a = s.norm_eps, "rope"_a = rope_name(s.rope.kind), "rope_base"_a = s.rope.base,
      "rope_factor"_a = s.rope.factor, "rotary_dim"_a = s.rope.rotary_dim,
      "qkv_bias"_a = s.qkv_bias, "o_bias"_a = s.o_bias, "mlp_bias"_a = s.mlp_bias,
      "qk_norm"_a = s.qk_norm, "tied_embeddings"_a = s.tied_embeddings, "logn_len"_a = s.logn_len,
      "sliding_window"_a = s.sliding_window, "weight_dtype"_a = ops::dtype_name(s.weight_dtype),
      "bos_token_id"_a = s.bos_token_id, "eos_token_ids"_a = s.eos_token_ids);
}

}  // namespace

void bind_inspect(py::module_& m) {
  m.def("inspect", &inspect, py::arg("path"));
  m.def("version", &version);
  m.def("backends", &backends);
}

}  // namespace treadle::python
