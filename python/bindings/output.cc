// Output: what one continuation produced since it was last read.
#include <pybind11/numpy.h>

#include <treadle/request.h>

#include "bindings.h"

namespace py = pybind11;

namespace treadle::python {
namespace {

py::tuple to_tuple(const TokenLogprob& entry) {
  return py::make_tuple(entry.token_id, entry.logprob);
}

/// [((token id, logprob), [(token id, logprob), ...]), ...]: the chosen token, then the top ones.
py::list to_list(const std::vector<PositionLogprobs>& positions) {
  py::list result(positions.size());
  for (size_t i = 0; i < positions.size(); ++i) {
    py::list top(positions[i].top.size());
    for (size_t j = 0; j < positions[i].top.size(); ++j) top[j] = to_tuple(positions[i].top[j]);
    result[i] = py::make_tuple(to_tuple(positions[i].chosen), std::move(top));
  }
  return result;
}

py::array_t<int32_t> to_array(const std::vector<int32_t>& ids) {
  return py::array_t<int32_t>(static_cast<py::ssize_t>(ids.size()), ids.data());
}

py::tuple to_tuple(const Usage& usage) {
  return py::make_tuple(usage.prompt_tokens, usage.cached_tokens, usage.computed_tokens,
                        usage.output_tokens);
}

}  // namespace

void bind_output(py::module_& m) {
  py::class_<Output>(m, "Output")
      .def_readonly("index", &Output::index)
      .def_property_readonly("token_ids", [](const Output& o) { return to_array(o.token_ids); })
      .def_property_readonly("logprobs", [](const Output& o) { return to_list(o.logprobs); })
      .def_property_readonly("prompt_logprobs",
                             [](const Output& o) { return to_list(o.prompt_logprobs); })
      .def_property_readonly("finish_reason",
                             [](const Output& o) { return finish_reason_name(o.finish_reason); })
      .def_property_readonly("error", [](const Output& o) { return error_code_name(o.error); })
      .def_readonly("error_message", &Output::error_message)
      .def_property_readonly("usage", [](const Output& o) { return to_tuple(o.usage); });
}

}  // namespace treadle::python
