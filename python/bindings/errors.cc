// treadle::Error becomes the matching class of treadle.errors.
#include <exception>

#include <treadle/error.h>

#include "bindings.h"

namespace py = pybind11;

namespace treadle::python {
namespace {

void raise(const Error& error) {
  // Imported here and not at module start: treadle.errors must stay importable without the
  // extension, and the other way round.
  py::object exception = py::module_::import("treadle.errors")
                             .attr("from_code")(error_code_name(error.code()), error.what());
  PyErr_SetObject(py::type::handle_of(exception).ptr(), exception.ptr());
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const Error& error) {
      raise(error);
    }
  });
}

}  // namespace treadle::python
