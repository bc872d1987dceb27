// SamplingParams, field by field; treadle.GenerationConfig is resolved into it.
#include <pybind11/stl.h>

#include <treadle/request.h>

#include "bindings.h"

namespace py = pybind11;

namespace treadle::python {

void bind_sampling(py::module_& m) {
  py::class_<SamplingParams>(m, "SamplingParams")
      .def(py::init<>())
      .def_readwrite("max_new_tokens", &SamplingParams::max_new_tokens)
      .def_readwrite("min_new_tokens", &SamplingParams::min_new_tokens)
      .def_readwrite("temperature", &SamplingParams::temperature)
      .def_readwrite("top_k", &SamplingParams::top_k)
      .def_readwrite("top_p", &SamplingParams::top_p)
      .def_readwrite("min_p", &SamplingParams::min_p)
      .def_readwrite("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_readwrite("presence_penalty", &SamplingParams::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_readwrite("logit_bias", &SamplingParams::logit_bias)
      .def_readwrite("bad_words", &SamplingParams::bad_words)
      .def_readwrite("stop_words", &SamplingParams::stop_words)
      .def_readwrite("stop_token_ids", &SamplingParams::stop_token_ids)
      .def_readwrite("ignore_eos", &SamplingParams::ignore_eos)
      .def_readwrite("logprobs", &SamplingParams::logprobs)
      .def_readwrite("prompt_logprobs", &SamplingParams::prompt_logprobs)
      .def_readwrite("n", &SamplingParams::n)
      .def_readwrite("seed", &SamplingParams::seed);
}

}  // namespace treadle::python
