// Stream and WaitSet as Python sees them.
#include <thread>

#include <pybind11/stl.h>

#include "bindings.h"
#include "signal_wait.h"
#include "wait_set.h"

namespace py = pybind11;

namespace treadle::python {
namespace {

using Events = std::vector<WaitSet::Event>;

Events wait(WaitSet& set, double timeout, double linger) {
  {
    py::gil_scoped_release unlocked;
    set.arm_announced();
    if (set.size() == 0) return {};
  }
  // Another thread may have removed the last stream meanwhile.
  wait_interruptibly(deadline_after(timeout), [&](Clock::time_point until) {
    return set.signal().wait_until(until) || set.size() == 0;
  });
  if (linger > 0.0) {
    wait_interruptibly(deadline_after(linger), [](Clock::time_point until) {
      std::this_thread::sleep_until(until);
      return false;
    });
  }
  py::gil_scoped_release unlocked;
  return set.take();
}

}  // namespace

void bind_stream(py::module_& m) {
  // Letting go of the last reference cancels the request.
  py::class_<Stream, std::shared_ptr<Stream>>(m, "Stream")
      .def("cancel", &Stream::cancel, py::call_guard<py::gil_scoped_release>())
      .def("done", &Stream::done, py::call_guard<py::gil_scoped_release>());

  py::class_<WaitSet>(m, "WaitSet", "Waits on the outputs of many requests at once.")
      .def(py::init<bool>(), py::kw_only(), py::arg("with_fd") = false)
      .def("add", &WaitSet::add, py::arg("stream"), py::call_guard<py::gil_scoped_release>())
      .def("remove", &WaitSet::remove, py::arg("wait_id"), py::call_guard<py::gil_scoped_release>())
      .def("arm", &WaitSet::arm, py::arg("wait_id"), py::call_guard<py::gil_scoped_release>())
      .def("poll", &WaitSet::take, py::call_guard<py::gil_scoped_release>(),
           "What has been announced, without waiting; arms nothing.")
      .def(
          "wait", &wait, py::arg("timeout") = -1.0, py::arg("linger") = 0.0,
          "Arms what was announced before, waits for an output (timeout < 0: for ever), then\n"
          "linger seconds more for others. Returns [(id, Output), ...]; [] at the timeout or when\n"
          "nothing is watched. Raises KeyboardInterrupt promptly.")
      .def("__len__", &WaitSet::size)
      .def("fileno", [](WaitSet& set) { return set.signal().fileno(); });
}

}  // namespace treadle::python
