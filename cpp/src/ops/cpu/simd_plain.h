// Portable vectors of four for the kernels: GCC and Clang turn them into SSE2, NEON or scalar code.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "ops/cpu/element.h"

namespace treadle::ops::cpu {

struct Plain {
  typedef float F __attribute__((vector_size(16)));    // NOLINT(modernize-use-using)
  typedef int32_t I __attribute__((vector_size(16)));  // NOLINT(modernize-use-using)
  static constexpr int kWidth = 4;
  static constexpr int kTileRows = 4;
  static constexpr int tile_vectors(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
  static constexpr bool kLoadConverts =
      false;  // loading 16-bit elements is slow: convert once where they are used often

  static F zero() { return F{}; }
  static F set1(float x) { return F{x, x, x, x}; }
  static F load(const float* p) { return F{p[0], p[1], p[2], p[3]}; }
  static F load(const F16* p) {
    const I bits = {p[0].bits, p[1].bits, p[2].bits, p[3].bits};
    const I sign = (bits & 0x8000) << 16;
    const I rest = bits & 0x7FFF;
    // See to_float(F16): the product is exact, and infinity and NaN are put right afterwards.
    const F magnitude = std::bit_cast<F>(rest << 13) * set1(0x1p112F);
    const I special = (rest >= 0x7C00) & 0x7F800000;
    return std::bit_cast<F>(std::bit_cast<I>(magnitude) | special | sign);
  }
  static F load(const BF16* p) {
    const I bits = {p[0].bits, p[1].bits, p[2].bits, p[3].bits};
    return std::bit_cast<F>(bits << 16);
  }
  static F load(const int8_t* p) {
    return F{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
             static_cast<float>(p[3])};
  }
  /// The low and the high halves of the next kWidth bytes.
  static void load_nibbles(const uint8_t* p, F* low, F* high) {
    for (int i = 0; i < kWidth; ++i) {
      (*low)[i] = static_cast<float>(p[i] & 15);
      (*high)[i] = static_cast<float>(p[i] >> 4);
    }
  }
  static F load_n(const float* p, int n) {
    F x{};
    for (int i = 0; i < kWidth && i < n; ++i) x[i] = p[i];
    return x;
  }

  template <typename T>
  static void store(T* p, F x) {
    for (int i = 0; i < kWidth; ++i) from_float(x[i], p + i);
  }
  static void store_n(float* p, F x, int n) {
    for (int i = 0; i < kWidth && i < n; ++i) p[i] = x[i];
  }

  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) {
#if defined(__aarch64__) || defined(__ARM_FEATURE_FMA)
    for (int i = 0; i < kWidth; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;  // two roundings: a fused product would be a library call here
#endif
  }
  /// The second operand when either is NaN.
  static F max(F a, F b) { return select(a > b, a, b); }
  static F min(F a, F b) { return select(a < b, a, b); }
  /// Nearest integer, |x| < 2^22.
  static F round(F x) {
    const F magic = set1(0x1.8p23F);
    return (x + magic) - magic;
  }
  /// 2^n for integral n in [-126, 127].
  static F pow2(F n) {
    const I e = {static_cast<int32_t>(n[0]), static_cast<int32_t>(n[1]), static_cast<int32_t>(n[2]),
                 static_cast<int32_t>(n[3])};
    return std::bit_cast<F>((e + 127) << 23);
  }
  /// x where threshold <= key (or unordered), else 0.
  static F zero_below(F x, F key, float threshold) { return select(key < set1(threshold), F{}, x); }
  /// Lanes [begin, end) of x, `other` elsewhere.
  static F keep_lanes(F x, int begin, int end, F other) {
    const I lane = {0, 1, 2, 3};
    return select((lane >= begin) & (lane < end), x, other);
  }
  static float sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float reduce_max(F x) {
    const float a = x[0] > x[2] ? x[0] : x[2];
    const float b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
  }

 private:
  static F select(I mask, F a, F b) {
    return std::bit_cast<F>((mask & std::bit_cast<I>(a)) | (~mask & std::bit_cast<I>(b)));
  }
};

}  // namespace treadle::ops::cpu
