// treadle._engine: the extension module.
#include "bindings.h"

PYBIND11_MODULE(_engine, m) {
  using namespace treadle::python;
  m.doc() = "The C++ engine. Use the treadle package; this module is its private half.";
  bind_errors(m);
  bind_config(m);
  bind_sampling(m);
  bind_output(m);
  bind_stream(m);
  bind_engine(m);
  bind_inspect(m);
}
