// What the tests of the CUDA table share: a count of checks, memory of a table, random data.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/ops.h"

namespace treadle::cuda::testing {

/// Counts checks and prints the failed ones; main returns finish().
class Report {
 public:
  void check(bool ok, const std::string& what) {
    ++total_;
    if (ok) return;
    if (++failed_ <= 60) std::printf("FAIL %s\n", what.c_str());
  }
  int finish(const char* name) const {
    std::printf("%s %s: %d of %d checks passed\n", failed_ == 0 ? "PASS" : "FAIL", name,
                total_ - failed_, total_);
    return failed_ == 0 && total_ > 0 ? 0 : 1;
  }
  int failed() const { return failed_; }

 private:
  int total_ = 0;
  int failed_ = 0;
};

/// Memory of a backend.
class Memory {
 public:
  Memory(const ops::Ops& ops, size_t bytes) : ops_(ops), bytes_(bytes) {
    ptr_ = ops.alloc(ops.self, bytes);
  }
  Memory(const ops::Ops& ops, const void* host, size_t bytes) : Memory(ops, bytes) {
    set(host, bytes);
  }
  ~Memory() { ops_.release(ops_.self, ptr_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void set(const void* host, size_t bytes) {
    ops_.upload(ops_.self, ptr_, host, bytes, {});
    ops_.synchronize(ops_.self, {});
  }
  std::vector<char> get() const {
    std::vector<char> host(bytes_);
    ops_.download(ops_.self, host.data(), ptr_, bytes_, {});
    ops_.synchronize(ops_.self, {});
    return host;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(ptr_);
  }
  size_t bytes() const { return bytes_; }

 private:
  const ops::Ops& ops_;
  size_t bytes_;
  void* ptr_ = nullptr;
};

inline uint16_t half_bits(ops::DType dtype, float x) {
  uint16_t bits = 0;
  if (dtype == ops::DType::kF16) {
    const __half h = __float2half_rn(x);
    std::memcpy(&bits, &h, 2);
  } else {
    const __nv_bfloat16 h = __float2bfloat16_rn(x);
    std::memcpy(&bits, &h, 2);
  }
  return bits;
}

inline float float_of(ops::DType dtype, const char* at) {
  if (dtype == ops::DType::kF32) {
    float x = 0;
    std::memcpy(&x, at, 4);
    return x;
  }
  if (dtype == ops::DType::kF16) {
    __half h;
    std::memcpy(&h, at, 2);
    return __half2float(h);
  }
  __nv_bfloat16 h;
  std::memcpy(&h, at, 2);
  return __bfloat162float(h);
}

/// The bytes of `values` in a dtype.
inline std::vector<char> encode(ops::DType dtype, const std::vector<float>& values) {
  std::vector<char> bytes(values.size() * ops::dtype_size(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == ops::DType::kF32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      const uint16_t bits = half_bits(dtype, values[i]);
      std::memcpy(&bytes[2 * i], &bits, 2);
    }
  }
  return bytes;
}

inline std::vector<float> decode(ops::DType dtype, const std::vector<char>& bytes) {
  std::vector<float> values(bytes.size() / ops::dtype_size(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = float_of(dtype, &bytes[i * ops::dtype_size(dtype)]);
  }
  return values;
}

/// Normal values that `dtype` represents exactly.
inline std::vector<float> random_values(ops::DType dtype, size_t n, uint32_t seed,
                                        float sigma = 1.0F) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0F, sigma);
  std::vector<float> values(n);
  for (float& v : values) {
    v = normal(generator);
    if (dtype != ops::DType::kF32) {
      const uint16_t bits = half_bits(dtype, v);
      v = float_of(dtype, reinterpret_cast<const char*>(&bits));
    }
  }
  return values;
}

/// NaN in every type.
inline std::vector<char> poison(size_t bytes) { return std::vector<char>(bytes, char(0xff)); }

/// |got - want| <= absolute + relative * |want| everywhere; NaN fails. Says where not.
inline std::string difference(const std::vector<float>& got, const std::vector<float>& want,
                              double relative, double absolute) {
  if (got.size() != want.size()) return "sizes differ";
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(double{got[i]} - double{want[i]});
    if (!(error <= absolute + relative * std::fabs(double{want[i]}))) {
      return "element " + std::to_string(i) + " is " + std::to_string(got[i]) + ", should be " +
             std::to_string(want[i]);
    }
  }
  return "";
}

/// Rounding error of a type, relative.
inline double epsilon(ops::DType dtype) {
  return dtype == ops::DType::kF16 ? 0x1p-11 : dtype == ops::DType::kBF16 ? 0x1p-8 : 0x1p-24;
}

}  // namespace treadle::cuda::testing
