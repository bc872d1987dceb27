// The parts of the extension module treadle._engine. Each file binds one subject; module.cc calls
// them in order of dependency. Nothing here is public: python/treadle/ gives it its Python shape.
#pragma once

#include <pybind11/pybind11.h>

namespace treadle::python {

void bind_errors(pybind11::module_& m);    // treadle::Error -> treadle.errors.*
void bind_config(pybind11::module_& m);    // EngineConfig
void bind_sampling(pybind11::module_& m);  // SamplingParams
void bind_output(pybind11::module_& m);    // Output
void bind_stream(pybind11::module_& m);    // Stream, WaitSet
void bind_engine(pybind11::module_& m);    // Engine
void bind_inspect(pybind11::module_& m);   // inspect(), version(), backends()

}  // namespace treadle::python
