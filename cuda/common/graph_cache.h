// Steps that are repeated: recorded as CUDA graphs and replayed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>

#include <cuda_runtime_api.h>

#include "common/handles.h"

namespace treadle::cuda {

/// One thread, one stream at a time.
class GraphCache {
 public:
  using Body = void (*)(void* context);

  /// Runs body(context), whose launches are the same whenever `key` is given: eagerly the first
  /// time, so that workspaces and algorithms are in place, recorded the second, replayed from then
  /// on. A graph holds addresses, so all of them are dropped when the process has made new device
  /// buffers since (device_memory_epoch). What `body` throws is passed on.
  void run(uint64_t key, Body body, void* context, cudaStream_t stream);

  size_t size() const { return entries_.size(); }

 private:
  // About 1 MB of device memory each for a model of 32 layers.
  static constexpr size_t kMaxGraphs = 64;

  struct Entry {
    GraphExecHandle graph;  // null until it was recorded
    uint64_t last_use = 0;
  };

  void drop_oldest();

  std::unordered_map<uint64_t, Entry> entries_;
  uint64_t epoch_ = 0;
  uint64_t uses_ = 0;
};

}  // namespace treadle::cuda
