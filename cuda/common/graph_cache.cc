#include "common/graph_cache.h"

#include <algorithm>

namespace treadle::cuda {
namespace {

GraphExecHandle record(GraphCache::Body body, void* context, cudaStream_t stream) {
  // Calls of other threads, another engine's among them, must not break the recording.
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin a graph");
  cudaGraph_t recorded = nullptr;
  try {
    body(context);
  } catch (...) {
    (void)cudaStreamEndCapture(stream, &recorded);
    const GraphHandle dropped(recorded);
    throw;
  }
  check(cudaStreamEndCapture(stream, &recorded), "end a graph");
  const GraphHandle graph(recorded);
  cudaGraphExec_t executable = nullptr;
  check(cudaGraphInstantiate(&executable, graph.get(), 0), "instantiate a graph");
  return GraphExecHandle(executable);
}

}  // namespace

void GraphCache::drop_oldest() {
  const auto oldest = std::min_element(
      entries_.begin(), entries_.end(),
      [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; });
  entries_.erase(oldest);
}

void GraphCache::run(uint64_t key, Body body, void* context, cudaStream_t stream) {
  if (epoch_ != device_memory_epoch()) {
    entries_.clear();
    epoch_ = device_memory_epoch();
  }
  const auto found = entries_.find(key);
  if (found == entries_.end()) {
    body(context);
    if (epoch_ != device_memory_epoch()) return;  // it made buffers: the next call starts over
    if (entries_.size() >= kMaxGraphs) drop_oldest();
    entries_[key].last_use = ++uses_;
    return;
  }
  Entry& entry = found->second;
  entry.last_use = ++uses_;
  if (entry.graph.get() == nullptr) entry.graph = record(body, context, stream);
  check(cudaGraphLaunch(entry.graph.get(), stream), "launch a graph");
}

}  // namespace treadle::cuda
