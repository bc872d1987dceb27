// Waiting with the GIL released, in slices short enough that Ctrl-C is answered at once.
#pragma once

#include <algorithm>
#include <chrono>

#include <pybind11/pybind11.h>

namespace treadle::python {

using Clock = std::chrono::steady_clock;

/// Longest time between two looks at pending signals.
inline constexpr std::chrono::milliseconds kSignalSlice{100};

/// Calls `wait(until)` with the GIL released until it returns true or `deadline` has passed;
/// returns what it returned last. Throws error_already_set (KeyboardInterrupt) when a signal
/// handler did.
template <typename Wait>
bool wait_interruptibly(Clock::time_point deadline, Wait&& wait) {
  for (;;) {
    bool ready = false;
    {
      pybind11::gil_scoped_release unlocked;
      ready = wait(std::min(deadline, Clock::now() + kSignalSlice));
    }
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    if (ready || Clock::now() >= deadline) return ready;
  }
}

/// now + seconds; a negative or huge number of seconds means never.
inline Clock::time_point deadline_after(double seconds) {
  constexpr double kNever = 1e9;
  if (!(seconds >= 0.0 && seconds < kNever)) return Clock::time_point::max();
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace treadle::python
