// Launches that overlap and depend on each other, as a recorded step has them.
#pragma once

#include <cstring>
#include <vector>

#include "check.h"
#include "common/check.h"
#include "common/handles.h"
#include "device_array.cuh"
#include "ops/ops.h"

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

/// The same of a gated layer (`up`, [2 * inner][width]) and one that adds to its input (`down`), in
/// turns. `multiply(params, stream)` queues a product.
template <class Multiply>
void check_replayed_layers(Report& report, const ops::LinearWeight& up,
                           const ops::LinearWeight& down, int m, const Multiply& multiply,
                           int rounds = 6, int runs = 20) {
  Array<__half> start(size_t(m) * size_t(up.in_features));
  start.fill(5, 0.5F);
  Array<__half> values(start.count());
  Array<__half> h(size_t(m) * size_t(down.in_features));
  const StreamHandle stream = make_stream();
  const auto body = [&](bool wait) {
    check(cudaMemcpyAsync(values.get(), start.get(), start.bytes(), cudaMemcpyDeviceToDevice,
                          stream.get()),
          "copy");
    for (int i = 0; i < rounds; ++i) {
      for (const ops::LinearParams& p :
           {ops::LinearParams{
                .x = values.get(), .weight = &up, .y = h.get(), .num_tokens = m, .silu_mul = true},
            ops::LinearParams{
                .x = h.get(), .weight = &down, .y = values.get(), .num_tokens = m, .add = true}}) {
        multiply(p, stream.get());
        if (wait) check(cudaStreamSynchronize(stream.get()), "wait");
      }
    }
  };
  check_replays(report, stream, values, h, body, runs);
}

}  // namespace treadle::cuda::testing
