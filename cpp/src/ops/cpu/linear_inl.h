// One task of a linear layer: some rows of x times one or two weight panels.
#pragma once

#include "ops/cpu/int4_inl.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/math_inl.h"
#include "ops/cpu/tile_inl.h"

namespace treadle::ops::cpu {

// How far weights are fetched ahead of their use: 4 KiB of 16-bit elements, where the gain levels
// off.
constexpr int64_t kAheadRows = 32;

/// Two panels at a time: twice the independent chains of one row.
template <class V, class T>
inline void two_panels(const float* x, const T* b0, const T* b1, int64_t depth, float* c0,
                       float* c1) {
  using F = typename V::F;
  constexpr int kVectors = kPanel / V::kWidth;
  F acc[2][kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) acc[0][v] = acc[1][v] = V::zero();
  for (int64_t k = 0; k < depth; ++k) {
    const F a = V::set1(x[k]);
    const T* r0 = b0 + k * kPanel;
    const T* r1 = b1 + k * kPanel;
#pragma GCC unroll 8
    for (size_t line = 0; line < kPanel * sizeof(T); line += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(r0 + kAheadRows * kPanel) + line);
      __builtin_prefetch(reinterpret_cast<const char*>(r1 + kAheadRows * kPanel) + line);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      acc[0][v] = V::fma(a, V::load(r0 + v * V::kWidth), acc[0][v]);
      acc[1][v] = V::fma(a, V::load(r1 + v * V::kWidth), acc[1][v]);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    V::store(c0 + v * V::kWidth, acc[0][v]);
    V::store(c1 + v * V::kWidth, acc[1][v]);
  }
}

template <class V>
inline void store_columns(float* y, typename V::F value, int columns) {
  if (columns >= V::kWidth) {
    V::store(y, value);
  } else if (columns > 0) {
    V::store_n(y, value, columns);
  }
}

/// sums: [num_panels][rows][64]
template <class V>
inline void finish_linear(const LinearTask& t, const float* sums) {
  using F = typename V::F;
  const int64_t panel_floats = int64_t{t.rows} * kPanel;
  for (int r = 0; r < t.rows; ++r) {
    const float* first = sums + int64_t{r} * kPanel;
    float* y = t.y + r * t.ldy;
    if (t.silu_mul) {
      for (int c = 0; c < kPanel; c += V::kWidth) {
        F gate = V::load(first + c);
        F up = V::load(first + panel_floats + c);
        if (t.bias != nullptr) {
          gate = V::add(gate, V::load(t.bias + c));
          up = V::add(up, V::load(t.bias + kPanel + c));
        }
        store_columns<V>(y + c, V::mul(silu<V>(gate), up), t.columns - c);
      }
      continue;
    }
    for (int p = 0; p < t.num_panels; ++p) {
      for (int c = 0; c < kPanel; c += V::kWidth) {
        F sum = V::load(first + p * panel_floats + c);
        if (t.bias != nullptr) sum = V::add(sum, V::load(t.bias + p * kPanel + c));
        const int columns = t.columns - p * kPanel - c;
        float* to = y + p * kPanel + c;
        if (t.add && columns > 0) {
          sum = V::add(columns >= V::kWidth ? V::load(to) : V::load_n(to, columns), sum);
        }
        store_columns<V>(to, sum, columns);
      }
    }
  }
}

template <class V, class T>
inline void linear_typed(const LinearTask& t) {
  constexpr int kVectors = kPanel / V::kWidth;
  const T* panels = static_cast<const T*>(t.panels);
  const int64_t panel_elems = t.in_features * kPanel;
  const int64_t panel_floats = int64_t{t.rows} * kPanel;
  float* sums = t.scratch;
  float* slice = t.scratch + 2 * kMaxTaskRows * kPanel;

  if (t.rows == 1 && t.num_panels == 2 && V::kWidth == 16) {
    two_panels<V>(t.x, panels, panels + panel_elems, t.in_features, sums, sums + panel_floats);
  } else {
    // Several row tiles read the panel: a slice of it stays in the second cache meanwhile.
    const bool several = t.rows > V::kTileRows;
    const int64_t depth = several ? kSliceDepth : t.in_features;
    const bool converted = several && !V::kLoadConverts && sizeof(T) < sizeof(float);
    for (int p = 0; p < t.num_panels; ++p) {
      const T* panel = panels + p * panel_elems;
      float* c = sums + p * panel_floats;
      for (int64_t k = 0; k < t.in_features; k += depth) {
        const int64_t length = k + depth < t.in_features ? depth : t.in_features - k;
        if (converted) {
          convert<V>(panel + k * kPanel, slice, length * kVectors);
          multiply<V>(t.x + k, t.in_features, slice, kPanel, length, c, kPanel, k > 0, t.rows,
                      kVectors, nullptr, 0);
        } else {
          // With one row tile the fetch runs a little ahead, with several one slice ahead.
          const T* from = panel + k * kPanel;
          const T* next = from + (several ? length : kAheadRows) * kPanel;
          multiply<V>(t.x + k, t.in_features, from, kPanel, length, c, kPanel, k > 0, t.rows,
                      kVectors, next, length * kPanel * int64_t{sizeof(T)});
        }
      }
    }
  }
  finish_linear<V>(t, sums);
}

template <class V>
inline void linear(const LinearTask& t) {
  if (t.int4.group_size > 0) {
    multiply_int4<V>(t, t.scratch, t.scratch + 2 * kMaxTaskRows * kPanel);
    return finish_linear<V>(t, t.scratch);
  }
  switch (t.dtype) {
    case DType::kF16:
      return linear_typed<V, F16>(t);
    case DType::kBF16:
      return linear_typed<V, BF16>(t);
    default:
      return linear_typed<V, float>(t);
  }
}

}  // namespace treadle::ops::cpu
