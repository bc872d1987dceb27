// Engine: load, submit, sessions, statistics. The GIL is released wherever the C++ side may wait.
#include <string>

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <treadle/engine.h>

#include "bindings.h"
#include "engine_handle.h"

namespace py = pybind11;

namespace treadle::python {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

/// Also the place where Ctrl-C ends a long load.
void report_progress(const py::object& callback, int64_t done, int64_t total) {
  py::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  if (!callback.is_none()) callback(done, total);
}

std::shared_ptr<EngineHandle> load(const std::string& path, EngineConfig config,
                                   const py::object& on_load_progress) {
  config.on_load_progress = [&on_load_progress](int64_t done, int64_t total) {
    report_progress(on_load_progress, done, total);
  };
  py::gil_scoped_release unlocked;
  return std::make_shared<EngineHandle>(Engine::load(path, std::move(config)));
}

SessionMode session_mode(const std::string& name) {
  if (name == "auto") return SessionMode::kAuto;
  if (name == "start") return SessionMode::kStart;
  if (name == "continue") return SessionMode::kContinue;
  throw Error(ErrorCode::kInvalidArgument,
              "session_mode is \"" + name + "\", not auto, start or continue");
}

using TokenIds = py::array_t<int32_t, py::array::c_style>;

std::shared_ptr<Stream> submit(EngineHandle& handle, const TokenIds& input_ids,
                               const SamplingParams& sampling, std::optional<uint64_t> session_id,
                               const std::string& mode, bool end_session,
                               std::optional<int32_t> step, int32_t priority, double timeout_s) {
  Request request;
  request.session_id = session_id;
  request.input_ids.assign(input_ids.data(), input_ids.data() + input_ids.size());
  request.sampling = sampling;
  request.session_mode = session_mode(mode);
  request.end_session = end_session;
  request.step = step;
  request.priority = priority;
  request.timeout_s = timeout_s;
  py::gil_scoped_release unlocked;
  return std::make_shared<Stream>(handle.get()->submit(std::move(request)));
}

py::object session(EngineHandle& handle, uint64_t session_id) {
  std::optional<SessionInfo> info;
  {
    py::gil_scoped_release unlocked;
    info = handle.get()->session(session_id);
  }
  if (!info) return py::none();
  py::array_t<int32_t> ids(static_cast<py::ssize_t>(info->token_ids.size()),
                           info->token_ids.data());
  return py::make_tuple(std::move(ids), info->busy);
}

py::dict info(const EngineHandle& handle) {
  const ModelInfo& i = handle.info();
  using namespace py::literals;
  return py::dict(
      "architecture"_a = i.architecture, "family"_a = i.family, "device"_a = i.device,
      "device_note"_a = i.device_note, "model_name"_a = i.model_name,
      "ignored_keys"_a = i.ignored_keys, "dtype"_a = i.dtype, "weight_dtype"_a = i.weight_dtype,
      "kv_dtype"_a = i.kv_dtype, "kv_static_ranges"_a = i.kv_static_ranges,
      "num_layers"_a = i.num_layers, "hidden_size"_a = i.hidden_size,
      "intermediate_size"_a = i.intermediate_size, "num_heads"_a = i.num_heads,
      "num_kv_heads"_a = i.num_kv_heads, "head_dim"_a = i.head_dim, "vocab_size"_a = i.vocab_size,
      "max_position_embeddings"_a = i.max_position_embeddings, "session_len"_a = i.session_len,
      "max_batch_size"_a = i.max_batch_size, "max_prefill_token_num"_a = i.max_prefill_token_num,
      "eos_token_ids"_a = i.eos_token_ids, "num_parameters"_a = i.num_parameters,
      "weight_bytes"_a = i.weight_bytes, "workspace_bytes"_a = i.workspace_bytes,
      "kv_bytes_per_token"_a = i.kv_bytes_per_token, "kv_pool_bytes"_a = i.kv_pool_bytes,
      "kv_block_tokens"_a = i.kv_block_tokens, "kv_blocks"_a = i.kv_blocks,
      "num_threads"_a = i.num_threads);
}

py::dict stats(EngineHandle& handle) {
  Stats s;
  {
    py::gil_scoped_release unlocked;
    s = handle.get()->stats();
  }
  using namespace py::literals;
  return py::dict(
      "running"_a = s.running, "waiting"_a = s.waiting, "sessions"_a = s.sessions,
      "blocks_free"_a = s.blocks_free, "blocks_active"_a = s.blocks_active,
      "blocks_cached"_a = s.blocks_cached, "requests_submitted"_a = s.requests_submitted,
      "requests_finished"_a = s.requests_finished, "requests_cancelled"_a = s.requests_cancelled,
      "requests_failed"_a = s.requests_failed, "prompt_tokens"_a = s.prompt_tokens,
      "computed_tokens"_a = s.computed_tokens, "prefix_hit_tokens"_a = s.prefix_hit_tokens,
      "output_tokens"_a = s.output_tokens, "preemptions"_a = s.preemptions,
      "evicted_blocks"_a = s.evicted_blocks, "copied_blocks"_a = s.copied_blocks,
      "steps"_a = s.steps, "step_seconds"_a = s.step_seconds, "host_seconds"_a = s.host_seconds,
      "ttft_count"_a = s.ttft_count, "ttft_seconds"_a = s.ttft_seconds, "itl_count"_a = s.itl_count,
      "itl_seconds"_a = s.itl_seconds);
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<EngineHandle, std::shared_ptr<EngineHandle>>(m, "Engine")
      .def_static("load", &load, py::arg("path"), py::arg("config"), py::kw_only(),
                  py::arg("on_load_progress") = py::none())
      .def("submit", &submit, py::arg("input_ids"), py::arg("sampling"), py::kw_only(),
           py::arg("session_id") = py::none(), py::arg("session_mode") = "auto",
           py::arg("end_session") = false, py::arg("step") = py::none(), py::arg("priority") = 0,
           py::arg("timeout_s") = 0.0)
      .def(
          "cancel", [](EngineHandle& h, uint64_t id) { return h.get()->cancel(id); },
          py::arg("session_id"), Unlocked())
      .def(
          "end_session", [](EngineHandle& h, uint64_t id) { return h.get()->end_session(id); },
          py::arg("session_id"), Unlocked())
      .def("session", &session, py::arg("session_id"))
      .def("info", &info)
      .def("stats", &stats)
      .def(
          "health",
          [](EngineHandle& h) {
            const Health health = h.health();
            return std::pair(health.ok, health.cause);
          },
          Unlocked())
      .def("close", &EngineHandle::close, py::arg("drain_seconds") = 0.0, Unlocked());
}

}  // namespace treadle::python
