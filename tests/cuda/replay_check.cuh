// Launches that overlap and depend on each other, as a recorded step has them.
#pragma once

#include <cstring>
#include <vector>

#include "check.h"
#include "common/check.h"
#include "common/handles.h"
#include "device_array.cuh"

namespace treadle::cuda::testing {

/// `body(wait)` queues launches on `stream` that leave `result`, by way of `between`; with `wait`
/// it waits after each. Recorded without waiting and replayed `runs` times, it must give the same
/// to the bit.
template <class T, class Body>
void check_replays(Report& report, const StreamHandle& stream, Array<T>& result, Array<T>& between,
                   const Body& body, int runs = 20) {
  body(true);
  const std::vector<T> want = result.host();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "capture");
  body(false);
  check(cudaStreamEndCapture(stream.get(), &graph), "capture");
  const GraphHandle owned_graph(graph);
  check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  const GraphExecHandle owned_exec(exec);
  for (int run = 0; run < runs; ++run) {
    result.poison();
    between.poison();
    check(cudaGraphLaunch(exec, stream.get()), "replay");
    check(cudaStreamSynchronize(stream.get()), "wait");
    const std::vector<T> got = result.host();
    report.check(std::memcmp(got.data(), want.data(), result.bytes()) == 0,
                 "a replayed chain differs from its products one by one");
  }
}

}  // namespace treadle::cuda::testing
