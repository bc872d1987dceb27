// Linear layers of 4-bit weights: a slice of a panel becomes floats, which the dense tile
// multiplies.
#pragma once

#include "ops/cpu/kernels.h"
#include "ops/cpu/tile_inl.h"

namespace treadle::ops::cpu {

// Depth of a slice that one row tile reads: 16 KiB of floats, which stay in the first cache.
constexpr int64_t kInt4Depth = 64;

/// out[k][64] = (q - zero) * scale of inputs [begin, begin + depth) of the panel. Exact where
/// scales are half precision: the difference has 5 bits.
template <class V>
inline void unpack_int4(const uint8_t* panel, int64_t in_features, const Int4Task& t, int64_t begin,
                        int64_t depth, float* out) {
  using F = typename V::F;
  constexpr int kHalf = kPanel / 2;
  constexpr int kVectors = kHalf / V::kWidth;
  const int64_t groups = in_features / t.group_size;
  const auto* scales = reinterpret_cast<const float*>(panel + in_features * kHalf);
  const float* zeros = scales + groups * kPanel;
  int64_t group = begin / t.group_size;
  int64_t left = t.group_size - begin % t.group_size;
  for (int64_t k = begin; k < begin + depth; ++k) {
    if (t.group_of != nullptr) group = t.group_of[k];
    const float* scale = scales + group * kPanel;
    const float* zero = zeros + group * kPanel;
    const uint8_t* row = panel + k * kHalf;
    __builtin_prefetch(row + int64_t{64} * kHalf);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const int c = v * V::kWidth;
      F low;
      F high;
      V::load_nibbles(row + c, &low, &high);
      V::store(out + c, V::mul(V::sub(low, V::load(zero + c)), V::load(scale + c)));
      V::store(out + kHalf + c,
               V::mul(V::sub(high, V::load(zero + kHalf + c)), V::load(scale + kHalf + c)));
    }
    out += kPanel;
    if (t.group_of == nullptr && --left == 0) {
      ++group;
      left = t.group_size;
    }
  }
}

/// sums[num_panels][rows][64] of a task with int4 panels.
template <class V>
inline void multiply_int4(const LinearTask& t, float* sums, float* slice) {
  const auto* panels = static_cast<const uint8_t*>(t.panels);
  const size_t panel_bytes = int4_panel_bytes(t.in_features, t.int4.group_size);
  const int64_t depth = t.rows > V::kTileRows ? kSliceDepth : kInt4Depth;
  for (int p = 0; p < t.num_panels; ++p) {
    float* c = sums + int64_t{p} * t.rows * kPanel;
    for (int64_t k = 0; k < t.in_features; k += depth) {
      const int64_t length = k + depth < t.in_features ? depth : t.in_features - k;
      unpack_int4<V>(panels + static_cast<size_t>(p) * panel_bytes, t.in_features, t.int4, k,
                     length, slice);
      multiply<V>(t.x + k, t.in_features, slice, kPanel, length, c, kPanel, k > 0, t.rows,
                  kPanel / V::kWidth, nullptr, 0);
    }
  }
}

}  // namespace treadle::ops::cpu
