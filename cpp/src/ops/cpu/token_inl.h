// Operations on one token at a time: RMS norm; and from the fused projection to Q and the KV pool.
#pragma once

#include <cmath>
#include <type_traits>

#include "ops/cpu/kernels.h"
#include "ops/cpu/quantise_inl.h"
#include "ops/cpu/tile_inl.h"

namespace treadle::ops::cpu {

/// 1 / sqrt(mean(x^2) + eps); four vectors of partial sums, added in a fixed order.
template <class V>
inline float inverse_rms(const float* x, int n, float eps) {
  using F = typename V::F;
  constexpr int kStep = 4 * V::kWidth;
  F part[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int i = 0;
  for (; i + kStep <= n; i += kStep) {
    for (int j = 0; j < 4; ++j) {
      const F value = V::load(x + i + j * V::kWidth);
      part[j] = V::fma(value, value, part[j]);
    }
  }
  for (; i < n; i += V::kWidth) {
    const F value = V::load_n(x + i, n - i < V::kWidth ? n - i : V::kWidth);
    part[0] = V::fma(value, value, part[0]);
  }
  const float sum = V::sum(V::add(V::add(part[0], part[1]), V::add(part[2], part[3])));
  return 1.0F / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
}

/// out = x * scale * weight
template <class V>
inline void scale_by(const float* x, float scale, const float* weight, float* out, int n) {
  for (int i = 0; i < n; i += V::kWidth) {
    const int lanes = n - i < V::kWidth ? n - i : V::kWidth;
    const auto scaled = V::mul(V::load_n(x + i, lanes), V::set1(scale));
    V::store_n(out + i, V::mul(scaled, V::load_n(weight + i, lanes)), lanes);
  }
}

template <class V>
inline void rms_norm(const NormTask& task, int64_t begin, int64_t end) {
  const int width = task.width;
  for (int64_t t = begin; t < end; ++t) {
    const float* x = task.x + t * width;
    scale_by<V>(x, inverse_rms<V>(x, width, task.eps), task.weight, task.out + t * width, width);
  }
}

/// Rotates pairs (i, i + n) by the angle of (cos[i], sin[i]), i < n.
template <class V>
inline void rotate_half(float* x, const float* cos, const float* sin, int n) {
  for (int i = 0; i < n; i += V::kWidth) {
    const int lanes = n - i < V::kWidth ? n - i : V::kWidth;
    const auto a = V::load_n(x + i, lanes);
    const auto b = V::load_n(x + n + i, lanes);
    const auto c = V::load_n(cos + i, lanes);
    const auto s = V::load_n(sin + i, lanes);
    V::store_n(x + i, V::sub(V::mul(a, c), V::mul(b, s)), lanes);
    V::store_n(x + n + i, V::add(V::mul(b, c), V::mul(a, s)), lanes);
  }
}

/// One head of one token: norm, RoPE, then times `scale`. out: [head_dim] floats.
template <class V>
inline void prepare_head(const QkvParams& p, const float* head, const float* norm, const float* cos,
                         const float* sin, float scale, float* out) {
  const int dim = p.head_dim;
  if (norm != nullptr) {
    scale_by<V>(head, inverse_rms<V>(head, dim, p.norm_eps), norm, out, dim);
  } else {
    for (int i = 0; i < dim; ++i) out[i] = head[i];
  }
  rotate_half<V>(out, cos, sin, p.rotary_dim / 2);
  if (scale != 1.0F) {
    for (int i = 0; i < dim; ++i) out[i] *= scale;
  }
}

template <class V, class T>
inline void store_all(T* out, const float* in, int n) {
  int i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) V::store(out + i, V::load(in + i));
  for (; i < n; ++i) from_float(in[i], out + i);
}

/// One head of K or V of one token, its elements `stride` apart. A quantised one's parameters are
/// those of its values, unless `given` says that they are there. scratch: [n] floats.
template <class V, class T>
inline void write_head(const float* in, int n, T* out, int stride, KvScale* scale, bool given,
                       float* scratch) {
  if constexpr (std::is_same_v<T, int8_t>) {
    if (!given) *scale = scale_of_values<V>(in, n);
    quantise<V>(in, n, *scale, out, stride, scratch);
  } else if (stride == 1) {
    store_all<V>(out, in, n);
  } else {
    T* element = reinterpret_cast<T*>(scratch);
    store_all<V>(element, in, n);
    for (int i = 0; i < n; ++i) out[size_t(i) * size_t(stride)] = element[i];
  }
}

template <class V, class T>
inline void qkv_typed(const QkvParams& p, int64_t begin, int64_t end, float* scratch) {
  const int dim = p.head_dim;
  const int half = p.rotary_dim / 2;
  const KvPool& kv = p.kv;
  float* head = scratch;
  float* converted = scratch + dim;
  float* cos = scratch + 2 * dim;
  float* sin = cos + half;
  for (int64_t t = begin; t < end; ++t) {
    const int position = p.batch.positions[t];
    for (int i = 0; i < half; ++i) {
      cos[i] = p.cos_sin[(t * half + i) * 2];
      sin[i] = p.cos_sin[(t * half + i) * 2 + 1];
    }
    float q_scale = 1.0F;
    if (p.logn_len > 0 && position >= p.logn_len) {
      q_scale = static_cast<float>(std::log(static_cast<double>(position) + 1.0) /
                                   std::log(static_cast<double>(p.logn_len)));
    }
    const float* in = static_cast<const float*>(p.qkv) + t * (p.heads + 2 * p.kv_heads) * dim;
    float* q = static_cast<float*>(p.q_out) + t * p.heads * dim;
    for (int h = 0; h < p.heads; ++h, in += dim, q += dim) {
      prepare_head<V>(p, in, p.q_norm, cos, sin, q_scale, q);
    }

    const int32_t* table = p.batch.block_tables +
                           size_t(p.batch.token_sequence[t]) * size_t(p.batch.block_table_stride);
    const int32_t id = table[position / kBlockTokens];
    if (id < 0) continue;  // padding
    const int slot = position % kBlockTokens;
    char* block = static_cast<char*>(kv.base) + size_t(id) * kv.block_bytes();
    T* k_base = reinterpret_cast<T*>(block) + size_t(p.layer) * kv.layer_elems();
    T* v_base = k_base + size_t(kv.kv_heads) * kv.head_elems();
    auto scale_of = [&](int part, int h) -> KvScale* {
      if (kv.dtype != DType::kI8) return nullptr;
      char* scales = static_cast<char*>(kv.base) + kv.scales_at(id, p.layer, part, h);
      return reinterpret_cast<KvScale*>(scales) + slot;
    };
    for (int h = 0; h < p.kv_heads; ++h, in += dim) {
      prepare_head<V>(p, in, p.k_norm, cos, sin, 1.0F, head);
      write_head<V>(head, dim, k_base + size_t(h) * kv.head_elems() + slot, kBlockTokens,
                    scale_of(0, h), kv.static_scales, converted);
    }
    for (int h = 0; h < p.kv_heads; ++h, in += dim) {
      write_head<V>(in, dim, v_base + size_t(h) * kv.head_elems() + size_t(slot) * dim, 1,
                    scale_of(1, h), kv.static_scales, converted);
    }
  }
}

template <class V>
inline void qkv(const QkvParams& p, int64_t begin, int64_t end, float* scratch) {
  switch (p.kv.dtype) {
    case DType::kF16:
      return qkv_typed<V, F16>(p, begin, end, scratch);
    case DType::kBF16:
      return qkv_typed<V, BF16>(p, begin, end, scratch);
    case DType::kI8:
      return qkv_typed<V, int8_t>(p, begin, end, scratch);
    default:
      return qkv_typed<V, float>(p, begin, end, scratch);
  }
}

template <class V, class T>
inline void to_float_typed(const T* in, int64_t stride, int64_t count, float* out) {
  int64_t i = 0;
  if (stride == 1) {
    for (; i + V::kWidth <= count; i += V::kWidth) V::store(out + i, V::load(in + i));
    for (; i < count; ++i) out[i] = to_float(in[i]);
    return;
  }
  for (; i + V::kWidth <= count; i += V::kWidth) {
    T lanes[V::kWidth];
    for (int j = 0; j < V::kWidth; ++j) lanes[j] = in[(i + j) * stride];
    V::store(out + i, V::load(lanes));
  }
  for (; i < count; ++i) out[i] = to_float(in[i * stride]);
}

template <class V>
inline void to_float_all(DType dtype, const void* in, int64_t stride, int64_t count, float* out) {
  switch (dtype) {
    case DType::kF16:
      return to_float_typed<V>(static_cast<const F16*>(in), stride, count, out);
    case DType::kBF16:
      return to_float_typed<V>(static_cast<const BF16*>(in), stride, count, out);
    default:
      return to_float_typed<V>(static_cast<const float*>(in), stride, count, out);
  }
}

}  // namespace treadle::ops::cpu
