// RAII owners of CUDA objects. Each is movable, not copyable, and frees on the device it was made
// on.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <cuda_runtime_api.h>

#include "common/check.h"

namespace treadle::cuda {

/// A move-only owner of `T`; `Free` is called once on a value other than T{}.
template <class T, auto Free>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T value) : value_(value) {}
  Handle(Handle&& other) noexcept : value_(std::exchange(other.value_, T{})) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Handle() {
    if (value_ != T{}) (void)Free(value_);  // nothing sensible can be done about a failing free
  }

  T get() const { return value_; }
  /// Gives up ownership.
  T release() { return std::exchange(value_, T{}); }

 private:
  T value_{};
};

using StreamHandle = Handle<cudaStream_t, &cudaStreamDestroy>;
using EventHandle = Handle<cudaEvent_t, &cudaEventDestroy>;
using GraphHandle = Handle<cudaGraph_t, &cudaGraphDestroy>;
using GraphExecHandle = Handle<cudaGraphExec_t, &cudaGraphExecDestroy>;

inline cudaError_t free_device(void* p) { return cudaFree(p); }
inline cudaError_t free_pinned(void* p) { return cudaFreeHost(p); }
using DeviceMemory = Handle<void*, &free_device>;
using PinnedMemory = Handle<void*, &free_pinned>;

inline StreamHandle make_stream() {
  cudaStream_t s = nullptr;
  check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "create stream");
  return StreamHandle(s);
}

inline EventHandle make_event(bool timing = false) {
  cudaEvent_t e = nullptr;
  check(cudaEventCreateWithFlags(&e, timing ? cudaEventDefault : cudaEventDisableTiming),
        "create event");
  return EventHandle(e);
}

/// Counts the allocations of device memory in this process: recorded graphs hold addresses and are
/// stale once a buffer may have been replaced.
inline std::atomic<uint64_t>& device_memory_epoch() {
  static std::atomic<uint64_t> epoch{0};
  return epoch;
}

inline DeviceMemory make_device_memory(size_t bytes) {
  void* p = nullptr;
  ++device_memory_epoch();
  if (bytes > 0) check(cudaMalloc(&p, bytes), "allocate device memory");
  return DeviceMemory(p);
}

inline PinnedMemory make_pinned_memory(size_t bytes) {
  void* p = nullptr;
  if (bytes > 0) check(cudaMallocHost(&p, bytes), "allocate pinned memory");
  return PinnedMemory(p);
}

}  // namespace treadle::cuda
