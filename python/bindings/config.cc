// EngineConfig, field by field; treadle.EngineConfig (a dataclass) is copied into it.
#include <pybind11/stl.h>

#include <treadle/config.h>

#include "bindings.h"

namespace py = pybind11;

namespace treadle::python {

void bind_config(py::module_& m) {
  py::class_<EngineConfig>(m, "EngineConfig")
      .def(py::init<>())
      .def_readwrite("device", &EngineConfig::device)
      .def_readwrite("dtype", &EngineConfig::dtype)
      .def_readwrite("session_len", &EngineConfig::session_len)
      .def_readwrite("max_batch_size", &EngineConfig::max_batch_size)
      .def_readwrite("cache_max_entry_count", &EngineConfig::cache_max_entry_count)
      .def_readwrite("max_prefill_token_num", &EngineConfig::max_prefill_token_num)
      .def_readwrite("tp", &EngineConfig::tp)
      .def_readwrite("rope_scaling_factor", &EngineConfig::rope_scaling_factor)
      .def_readwrite("use_logn_attn", &EngineConfig::use_logn_attn)
      .def_readwrite("quant_policy", &EngineConfig::quant_policy)
      .def_readwrite("num_threads", &EngineConfig::num_threads)
      .def_readwrite("max_queue_size", &EngineConfig::max_queue_size)
      .def_readwrite("max_sessions", &EngineConfig::max_sessions)
      .def_readwrite("session_ttl_s", &EngineConfig::session_ttl_s)
      .def_readwrite("enable_prefix_caching", &EngineConfig::enable_prefix_caching)
      .def_readwrite("random_seed", &EngineConfig::random_seed);
}

}  // namespace treadle::python
