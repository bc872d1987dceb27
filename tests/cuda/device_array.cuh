// Device memory of a type, and values for it.
#pragma once

#include <vector>

#include "common/handles.h"
#include "common/vec.cuh"

namespace treadle::cuda::testing {

/// A number that looks random, a function of the place and the seed.
__device__ __forceinline__ uint64_t hash_of(size_t i, uint32_t seed) {
  uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ULL + seed * 0xD1B54A32D192ED03ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  return (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
}

/// Values in (-scale, scale).
template <class T>
__global__ void fill_kernel(T* to, size_t n, uint32_t seed, float scale) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n;
       i += size_t(gridDim.x) * blockDim.x) {
    const auto bits = static_cast<float>(hash_of(i, seed) >> 40);
    to[i] = from_float<T>((bits * 0x1p-23F - 1.0F) * scale);
  }
}

/// Device memory of `count` values of type T.
template <class T>
class Array {
 public:
  explicit Array(size_t count) : count_(count), memory_(make_device_memory(count * sizeof(T))) {}
  T* get() const { return static_cast<T*>(memory_.get()); }
  size_t count() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }
  // Both wait, because the streams of the tests do not wait for the default stream.
  void fill(uint32_t seed, float scale) {
    fill_kernel<<<256, 256>>>(get(), count_, seed, scale);
    check(cudaDeviceSynchronize(), "fill");
  }
  void poison() {
    check(cudaMemset(get(), 0xff, bytes()), "poison");
    check(cudaDeviceSynchronize(), "poison");
  }
  std::vector<T> host() const {
    std::vector<T> values(count_);
    check(cudaMemcpy(values.data(), get(), bytes(), cudaMemcpyDeviceToHost), "download");
    return values;
  }

 private:
  size_t count_;
  DeviceMemory memory_;
};

}  // namespace treadle::cuda::testing
