// AVX-512 vectors for the kernels. Include only from *_avx512.cc.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "ops/cpu/element.h"

namespace treadle::ops::cpu {

struct Avx512 {
  using F = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kTileRows =
      6;  // 6 x 4 accumulators, 4 columns and a broadcast of 32 registers
  static constexpr int tile_vectors(int /*rows*/) { return 4; }
  static constexpr bool kLoadConverts =
      true;  // loading 16-bit elements costs no more than loading floats

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const F16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load(const BF16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static F load(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
  /// The low and the high halves of the next kWidth bytes.
  static void load_nibbles(const uint8_t* p, F* low, F* high) {
    const __m512i bytes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    *low = _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)));
    *high = _mm512_cvtepi32_ps(_mm512_srli_epi32(bytes, 4));
  }
  static F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes_below(n), p); }

  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store(F16* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(BF16* p, F x) {
    // Round to nearest even on the bits; a NaN keeps its top bits and a quiet one set.
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i out = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(out));
  }
  static void store_n(float* p, F x, int n) { _mm512_mask_storeu_ps(p, lanes_below(n), x); }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  /// The second operand when either is NaN.
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F round(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  /// 2^n for integral n in [-126, 127].
  static F pow2(F n) {
    const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
  }
  /// x where threshold <= key (or unordered), else 0.
  static F zero_below(F x, F key, float threshold) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(key, set1(threshold), _CMP_NLT_UQ), x);
  }
  /// Lanes [begin, end) of x, `other` elsewhere.
  static F keep_lanes(F x, int begin, int end, F other) {
    const unsigned keep = unsigned{lanes_below(end)} & ~unsigned{lanes_below(begin)};
    return _mm512_mask_mov_ps(other, static_cast<__mmask16>(keep), x);
  }
  static float sum(F x) {
    return sum8(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
  }
  static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }

 private:
  static __mmask16 lanes_below(int n) {
    return static_cast<__mmask16>(n >= 16 ? 0xFFFFU : n <= 0 ? 0U : (1U << n) - 1U);
  }
  static float sum8(__m256 x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace treadle::ops::cpu
