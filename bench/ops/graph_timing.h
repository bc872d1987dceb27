// Timing of GPU work by replayed graphs, and data for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "common/handles.h"

namespace treadle::cuda {

constexpr double kReadLimit =
    4.2e12;  // bytes per second that a read-only reduction reaches on an H200

/// Seconds of one launch among `launches` captured ones.
inline double graph_seconds(cudaStream_t stream, int launches,
                            const std::function<void(int)>& launch) {
  for (int i = 0; i < launches; ++i) launch(i);
  check(cudaStreamSynchronize(stream), "warm up");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < launches; ++i) launch(i);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  const GraphHandle owned_graph(graph);
  check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  const GraphExecHandle owned_exec(exec);
  const EventHandle begin = make_event(true);
  const EventHandle end = make_event(true);
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    check(cudaEventRecord(begin.get(), stream), "record");
    check(cudaGraphLaunch(exec, stream), "replay");
    check(cudaEventRecord(end.get(), stream), "record");
    check(cudaEventSynchronize(end.get()), "wait");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, begin.get(), end.get()), "time");
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e-3 / launches;
}

/// Normal values of deviation 0.02, as weights are. Values of one exponent, say, would not do: at
/// the power limit the clock goes with the bits that change.
inline std::vector<uint16_t> random_halves(size_t n) {
  static const std::vector<uint16_t> values = [] {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal(0.0F, 0.02F);
    std::vector<uint16_t> some(1 << 16);
    for (uint16_t& x : some) x = __half_raw(__float2half_rn(normal(generator))).x;
    return some;
  }();
  std::vector<uint16_t> v(n);
  uint32_t state = 1;
  for (uint16_t& x : v) {
    state = state * 1664525U + 1013904223U;
    x = values[state >> 16];
  }
  return v;
}

}  // namespace treadle::cuda
