// The register tile under the linear layers and attention: C += A B by outer products.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cpu/element.h"

namespace treadle::ops::cpu {

/// Memory to fetch into the cache meanwhile: two lines with each k, `step` bytes further each time.
struct Ahead {
  const char* first = nullptr;
  ptrdiff_t step = 0;
};

/// c[R][N] = (accumulate ? c : 0) + a[R][depth] b[depth][N] with N = NV vectors. Each element is
/// one chain of fused multiply-adds in the order of k; c keeps its exact value between calls.
template <class V, int R, int NV, class T>
inline void tile(const float* a, ptrdiff_t lda, const T* b, ptrdiff_t ldb, int64_t depth, float* c,
                 ptrdiff_t ldc, bool accumulate, Ahead ahead) {
  using F = typename V::F;
  F acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      acc[r][v] = accumulate ? V::load(c + r * ldc + v * V::kWidth) : V::zero();
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(ahead.first + k * ahead.step);
    __builtin_prefetch(ahead.first + k * ahead.step + 64);
    F column[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) column[v] = V::load(b + k * ldb + v * V::kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F x = V::set1(a[r * lda + k]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = V::fma(x, column[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) V::store(c + r * ldc + v * V::kWidth, acc[r][v]);
  }
}

/// tile() over any number of vectors: as many as fit the registers at a time.
template <class V, int R, class T>
inline void tile_columns(const float* a, ptrdiff_t lda, const T* b, ptrdiff_t ldb, int64_t depth,
                         float* c, ptrdiff_t ldc, bool accumulate, int vectors, Ahead ahead) {
  constexpr int kMost = V::tile_vectors(R);
  constexpr int kWidth = V::kWidth;
  int v = 0;
  for (; v + kMost <= vectors; v += kMost) {
    tile<V, R, kMost>(a, lda, b + v * kWidth, ldb, depth, c + v * kWidth, ldc, accumulate, ahead);
    ahead.step = 0;  // once is enough
  }
  if constexpr (kMost > 2) {
    for (; v + 2 <= vectors; v += 2) {
      tile<V, R, 2>(a, lda, b + v * kWidth, ldb, depth, c + v * kWidth, ldc, accumulate, ahead);
    }
  }
  for (; v < vectors; ++v) {
    tile<V, R, 1>(a, lda, b + v * kWidth, ldb, depth, c + v * kWidth, ldc, accumulate, ahead);
  }
}

/// c[rows][vectors] = (accumulate ? c : 0) + a b for any number of rows, in tiles of nearly equal
/// height. While it works it fetches `next`, 64 bytes for each step of each of the first tiles.
template <class V, class T>
inline void multiply(const float* a, ptrdiff_t lda, const T* b, ptrdiff_t ldb, int64_t depth,
                     float* c, ptrdiff_t ldc, bool accumulate, int rows, int vectors,
                     const void* next, int64_t next_bytes) {
  int tiles = (rows + V::kTileRows - 1) / V::kTileRows;
  Ahead ahead{static_cast<const char*>(next), tiles == 1 ? 128 : 64};
  int64_t left = next_bytes;
  while (rows > 0) {
    if (left <= 0) ahead = {reinterpret_cast<const char*>(a), 0};
    const int height = (rows + tiles - 1) / tiles;
    switch (height) {
      case 1:
        tile_columns<V, 1>(a, lda, b, ldb, depth, c, ldc, accumulate, vectors, ahead);
        break;
      case 2:
        tile_columns<V, 2>(a, lda, b, ldb, depth, c, ldc, accumulate, vectors, ahead);
        break;
      case 3:
        tile_columns<V, 3>(a, lda, b, ldb, depth, c, ldc, accumulate, vectors, ahead);
        break;
      case 4:
        tile_columns<V, 4>(a, lda, b, ldb, depth, c, ldc, accumulate, vectors, ahead);
        break;
      default:
        if constexpr (V::kTileRows > 4) {
          if (height == 5) {
            tile_columns<V, 5>(a, lda, b, ldb, depth, c, ldc, accumulate, vectors, ahead);
          } else {
            tile_columns<V, 6>(a, lda, b, ldb, depth, c, ldc, accumulate, vectors, ahead);
          }
        }
        break;
    }
    left -= depth * ahead.step;
    ahead.first += depth * ahead.step;
    a += height * lda;
    c += height * ldc;
    rows -= height;
    --tiles;
  }
}

/// out[i] = float(in[i]) for `vectors` vectors.
template <class V, class T>
inline void convert(const T* in, float* out, int64_t vectors) {
  for (int64_t v = 0; v < vectors; ++v) V::store(out + v * V::kWidth, V::load(in + v * V::kWidth));
}

}  // namespace treadle::ops::cpu
