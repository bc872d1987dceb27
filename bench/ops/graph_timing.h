// Timing of GPU work by replayed graphs, and data for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

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

inline std::vector<uint16_t> random_halves(size_t n) {
  std::vector<uint16_t> v(n);
  uint32_t state = 1;
  for (uint16_t& x : v) {  // +-[0.0156, 0.03)
    state = state * 1664525U + 1013904223U;
    x = static_cast<uint16_t>(0x2400U | (state >> 22) | ((state >> 6) & 0x8000U));
  }
  return v;
}

}  // namespace treadle::cuda
