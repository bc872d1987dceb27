// The body of sample_kernels_{generic,avx2,avx512}.cc: written once with the compiler's vector
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

constexpr int32_t kLanes = 16;
using F16 = float __attribute__((vector_size(kLanes * sizeof(float))));
using I16 = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));
using U16 = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
using D8 = double __attribute__((vector_size(8 * sizeof(double))));
using F8 = float __attribute__((vector_size(8 * sizeof(float))));

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Vectors are passed by reference: by value their calling convention depends on the instruction
// set.
TREADLE_INLINE void splat(F16& v, float s) {
  for (int i = 0; i < kLanes; ++i) v[i] = s;
}

TREADLE_INLINE void load(F16& v, const float* p) { std::memcpy(&v, p, sizeof v); }

// The last n < 16 elements, the other lanes filled up.
TREADLE_INLINE void load_tail(F16& v, const float* p, int32_t n, float fill) {
  float buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = i < n ? p[i] : fill;
  std::memcpy(&v, buffer, sizeof v);
}

TREADLE_INLINE bool any(const I16& mask) {
  uint64_t words[sizeof(I16) / sizeof(uint64_t)];
  std::memcpy(words, &mask, sizeof mask);
  uint64_t all = 0;
  for (const uint64_t w : words) all |= w;
  return all != 0;
}

bool scan(const float* x, int32_t n, float* max) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  F16 best[2];
  I16 sane[2];
  for (int k = 0; k < 2; ++k) {
    splat(best[k], kMinusInf);
    sane[k] = best[k] == best[k];
  }
  int32_t i = 0;
  F16 v;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    for (int k = 0; k < 2; ++k) {
      load(v, x + i + k * kLanes);
      best[k] = v > best[k] ? v : best[k];
      sane[k] &= v <= kLargest;  // false for NaN, too
    }
  }
  for (; i < n; i += kLanes) {
    if (i + kLanes <= n) {
      load(v, x + i);
    } else {
      load_tail(v, x + i, n - i, kMinusInf);
    }
    best[0] = v > best[0] ? v : best[0];
    sane[0] &= v <= kLargest;
  }
  best[0] = best[1] > best[0] ? best[1] : best[0];
  float m = kMinusInf;
  for (int lane = 0; lane < kLanes; ++lane) m = best[0][lane] > m ? best[0][lane] : m;
  *max = m;
  return !any(~(sane[0] & sane[1]));
}

int32_t next_above(const float* x, int32_t begin, int32_t n, float threshold) {
  int32_t i = begin;
  F16 a, b, c, d;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    load(a, x + i);
    load(b, x + i + kLanes);
    load(c, x + i + 2 * kLanes);
    load(d, x + i + 3 * kLanes);
    if (any((a > threshold) | (b > threshold) | (c > threshold) | (d > threshold))) break;
  }
  while (i < n && !(x[i] > threshold)) ++i;
  return i;
}

// exp(y) for y <= 0 by the series to the seventh power on |r| <= ln(2) / 2, exact to about 1e-7
// there; 0 below the smallest normal number and for -inf.
TREADLE_INLINE void exp_nonpositive(F16& y) {
  constexpr float kLowest = -87.33F;
  constexpr float kLog2e = 1.44269504F;
  constexpr float kLn2High = 0.693359375F;  // 9 bits: times a whole number it is exact
  constexpr float kLn2Low = -2.12194440e-4F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to a whole number
  const I16 normal = y >= kLowest;
  const F16 shifted = y * kLog2e + kRound;
  const F16 whole = shifted - kRound;
  const F16 r = (y - whole * kLn2High) - whole * kLn2Low;
  F16 p = r * (1.0F / 5040.0F) + (1.0F / 720.0F);
  p = p * r + (1.0F / 120.0F);
  p = p * r + (1.0F / 24.0F);
  p = p * r + (1.0F / 6.0F);
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  // The low bits of `shifted` are the whole number; they go into the exponent.
  U16 bits, power;
  std::memcpy(&power, &shifted, sizeof power);
  std::memcpy(&bits, &p, sizeof bits);
  bits += power << 23;
  bits &= (U16)normal;
  std::memcpy(&y, &bits, sizeof y);
}

TREADLE_INLINE void add_to(D8 (&sum)[2], const F16& v) {
  F8 half[2];
  std::memcpy(half, &v, sizeof v);
  sum[0] += __builtin_convertvector(half[0], D8);
  sum[1] += __builtin_convertvector(half[1], D8);
}

TREADLE_INLINE double reduce(D8 (&sum)[2]) {
  const D8 s = sum[0] + sum[1];
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

// Vectors are added four at a time in float, then into the double lanes.
double weights(const float* x, int32_t n, float max, float scale, float floor, float* w) {
  const auto weigh = [=](F16 & v) __attribute__((always_inline)) {
    v = (v - max) * scale;
    exp_nonpositive(v);
    const I16 kept = v >= floor;
    U16 bits;
    std::memcpy(&bits, &v, sizeof bits);
    bits &= (U16)kept;
    std::memcpy(&v, &bits, sizeof v);
  };
  D8 sum[2] = {D8{}, D8{}};
  F16 v[4];
  int32_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      load(v[k], x + i + k * kLanes);
      weigh(v[k]);
      if (w != nullptr) std::memcpy(w + i + k * kLanes, &v[k], sizeof v[k]);
    }
    add_to(sum, (v[0] + v[1]) + (v[2] + v[3]));
  }
  for (; i < n; i += kLanes) {
    const int32_t left = n - i < kLanes ? n - i : kLanes;
    load_tail(v[0], x + i, left, kMinusInf);
    weigh(v[0]);
    if (w != nullptr) std::memcpy(w + i, &v[0], static_cast<size_t>(left) * sizeof(float));
    add_to(sum, v[0]);
  }
  return reduce(sum);
}

#undef TREADLE_INLINE

}  // namespace
}  // namespace treadle::ops::cpu
