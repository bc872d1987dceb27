// The body of sample_kernels_{plain,avx2,avx512}.cc: written once with the compiler's vector
// types, compiled for each instruction set. Everything has internal linkage, so that no build can
// be taken for another by the linker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ops/cpu/sample_kernels.h"

namespace treadle::ops::cpu {
namespace {

#define TREADLE_INLINE inline __attribute__((always_inline))

// Lanes of a register. Wider vector types would be taken apart through memory.
#if defined(__AVX512F__)
constexpr int32_t kWidth = 16;
#elif defined(__AVX2__)
constexpr int32_t kWidth = 8;
#else
constexpr int32_t kWidth = 4;
#endif
// Lanes of the program, whatever the register: sums are the same on every processor.
constexpr int32_t kLanes = 16;
constexpr int32_t kParts = kLanes / kWidth;

using Floats = float __attribute__((vector_size(kWidth * sizeof(float))));
using Ints = int32_t __attribute__((vector_size(kWidth * sizeof(int32_t))));
using Words = uint32_t __attribute__((vector_size(kWidth * sizeof(uint32_t))));
using HalfFloats = float __attribute__((vector_size(kWidth / 2 * sizeof(float))));
using Doubles = double __attribute__((vector_size(kWidth / 2 * sizeof(double))));

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Vectors are passed by reference: by value their calling convention depends on the instruction
// set.
// How memory holds them: at any address, read and written as if they were floats. (A memcpy may be
// cut into halves by the compiler, whose stores the next load has to wait for.)
struct __attribute__((packed, may_alias)) FloatsInMemory {
  Floats v;
};

TREADLE_INLINE void load(Floats& v, const float* p) {
  v = reinterpret_cast<const FloatsInMemory*>(p)->v;
}

TREADLE_INLINE void store(float* p, const Floats& v) {
  reinterpret_cast<FloatsInMemory*>(p)->v = v;
}

// A cast between vector types of one size keeps the bits.
TREADLE_INLINE void keep_where(Floats& v, const Ints& mask) { v = (Floats)((Ints)v & mask); }

TREADLE_INLINE bool any(const Ints& mask) {
  uint64_t words[sizeof(Ints) / sizeof(uint64_t)];
  std::memcpy(words, &mask, sizeof mask);
  uint64_t all = 0;
  for (const uint64_t w : words) all |= w;
  return all != 0;
}

bool scan(const float* x, int32_t n, float* max) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  Floats best[4];
  Ints sane[4];
  for (int k = 0; k < 4; ++k) {
    best[k] = Floats{} + kMinusInf;
    sane[k] = best[k] == best[k];
  }
  int32_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    for (int k = 0; k < 4; ++k) {
      Floats v;
      load(v, x + i + k * kWidth);
      best[k] = best[k] > v ? best[k] : v;
      sane[k] &= v <= kLargest;  // false for NaN, too
    }
  }
  const Ints all_sane = (sane[0] & sane[1]) & (sane[2] & sane[3]);
  bool ok = !any(~all_sane);
  float m = kMinusInf;
  for (const Floats& b : best) {
    for (int lane = 0; lane < kWidth; ++lane) m = b[lane] > m ? b[lane] : m;
  }
  for (; i < n; ++i) {
    ok = ok && x[i] <= kLargest;
    m = x[i] > m ? x[i] : m;
  }
  *max = m;
  return ok;
}

int32_t next_above(const float* x, int32_t begin, int32_t n, float threshold) {
  int32_t i = begin;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    Floats v[4];
    load(v[0], x + i);
    load(v[1], x + i + kWidth);
    load(v[2], x + i + 2 * kWidth);
    load(v[3], x + i + 3 * kWidth);
    if (any(((v[0] > threshold) | (v[1] > threshold)) |
            ((v[2] > threshold) | (v[3] > threshold)))) {
      break;
    }
  }
  while (i < n && !(x[i] > threshold)) ++i;
  return i;
}

// exp(y) for y <= 0 by the series to the seventh power on |r| <= ln(2) / 2, exact to about 1e-7
// there; 0 near the smallest normal number and below, and for -inf.
TREADLE_INLINE void exp_nonpositive(Floats& y) {
  constexpr float kLowest = -87.33F;
  constexpr float kLog2e = 1.44269504F;
  constexpr float kLn2High = 0.693359375F;  // 9 bits: times a whole number it is exact
  constexpr float kLn2Low = -2.12194440e-4F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to a whole number
  const Ints normal = y >= kLowest;
  const Floats shifted = y * kLog2e + kRound;
  const Floats whole = shifted - kRound;
  const Floats r = (y - whole * kLn2High) - whole * kLn2Low;
  Floats p = r * (1.0F / 5040.0F) + (1.0F / 720.0F);
  p = p * r + (1.0F / 120.0F);
  p = p * r + (1.0F / 24.0F);
  p = p * r + (1.0F / 6.0F);
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  // The low bits of `shifted` are the whole number; they go into the exponent.
  y = (Floats)((Words)p + ((Words)shifted << 23));
  keep_where(y, normal);
}

// One double for each of the sixteen lanes.
struct LaneSums {
  Doubles low[kParts] = {};
  Doubles high[kParts] = {};

  TREADLE_INLINE void add(int part, const Floats& v) {
    HalfFloats half[2];
    std::memcpy(half, &v, sizeof v);
    low[part] += __builtin_convertvector(half[0], Doubles);
    high[part] += __builtin_convertvector(half[1], Doubles);
  }

  double total() const {
    double lanes[kLanes];
    for (int part = 0; part < kParts; ++part) {
      std::memcpy(lanes + part * kWidth, &low[part], sizeof low[part]);
      std::memcpy(lanes + part * kWidth + kWidth / 2, &high[part], sizeof high[part]);
    }
    for (int step = kLanes / 2; step > 0; step /= 2) {
      for (int lane = 0; lane < step; ++lane) lanes[lane] += lanes[lane + step];
    }
    return lanes[0];
  }
};

// Four elements of a lane are added in float, then into the lane's double.
double weights(const float* x, int32_t n, float max, float scale, float floor, float* w) {
  LaneSums sums;
  const auto weigh = [&](Floats & v, const float* from, float* to, int32_t at)
      __attribute__((always_inline)) {
    load(v, from + at);
    v = (v - max) * scale;
    exp_nonpositive(v);
    keep_where(v, v >= floor);
    if (to != nullptr) store(to + at, v);
  };
  const auto add_group = [&](const float* from, float* to) __attribute__((always_inline)) {
    for (int32_t part = 0; part < kParts; ++part) {
      Floats v[4];
      weigh(v[0], from, to, part * kWidth);
      weigh(v[1], from, to, part * kWidth + kLanes);
      weigh(v[2], from, to, part * kWidth + 2 * kLanes);
      weigh(v[3], from, to, part * kWidth + 3 * kLanes);
      sums.add(part, (v[0] + v[1]) + (v[2] + v[3]));
    }
  };
  constexpr int32_t kGroup = 4 * kLanes;
  int32_t i = 0;
  for (; i + kGroup <= n; i += kGroup) add_group(x + i, w != nullptr ? w + i : nullptr);
  if (i < n) {
    const size_t left = static_cast<size_t>(n - i);
    float group[kGroup];
    for (float& g : group) g = kMinusInf;
    std::memcpy(group, x + i, left * sizeof(float));
    add_group(group, group);
    if (w != nullptr) std::memcpy(w + i, group, left * sizeof(float));
  }
  return sums.total();
}

#undef TREADLE_INLINE

}  // namespace
}  // namespace treadle::ops::cpu
