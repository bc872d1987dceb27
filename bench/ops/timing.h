// Timing of short functions.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

namespace treadle::bench {

template <typename Body>
double seconds_of(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Seconds {
  double median = 0;
  double best = 0;  // closest to an undisturbed machine
};

/// Time of one call, over about `budget` seconds of calls in groups of at least 1 ms.
template <typename Body>
Seconds time_of(const Body& body, double budget = 0.4) {
  body();
  const int group = std::max(1, static_cast<int>(0.001 / std::max(seconds_of(body), 1e-8)));
  std::vector<double> times;
  double total = 0;
  while (total < budget || times.size() < 7) {
    times.push_back(seconds_of([&] {
      for (int i = 0; i < group; ++i) body();
    }));
    total += times.back();
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2] / group, times[0] / group};
}

}  // namespace treadle::bench
