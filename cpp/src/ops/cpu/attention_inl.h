// Paged causal attention by online softmax (arXiv:2205.14135), one KV block at a time.
//
// A row is one query head of one token; the rows of a task are all query heads that share a KV
// head, for some consecutive tokens. Whatever rows a task has, a row goes through the same
// arithmetic: its own blocks in order, in segments of kSegmentKeys that are merged in order. Keys
// it must not see count as -inf, which leaves its state exactly as it was.
#pragma once

#include <limits>
#include <type_traits>

#include "ops/cpu/kernels.h"
#include "ops/cpu/math_inl.h"
#include "ops/cpu/quantise_inl.h"
#include "ops/cpu/tile_inl.h"

namespace treadle::ops::cpu {

// From this many rows on, a block's K and V are converted to float once instead of by each row
// tile. Quantised ones always are.
constexpr int kConvertRows = 13;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// A partial result: largest score, sum of exponentials and weighted sum of V of each row.
struct AttentionState {
  float* max;  // [rows]
  float* sum;  // [rows]
  float* out;  // [rows][padded head_dim]

  AttentionState(float* memory, int rows) : max(memory), sum(memory + rows), out(sum + rows) {}
};

template <class V>
struct AttentionRows {
  const AttentionParams& p;
  int sequence, kv_head, token_begin, tokens;
  int group, rows, dim, padded_dim;
  int first_pos, last_pos;  // of the first and the last token
  float* q;                 // [rows][dim], scaled
  float* scores;            // [rows][64]
  float* keys;              // [dim][64] converted block
  float* values;            // [64][padded_dim]
  float* state_memory[2];

  explicit AttentionRows(const AttentionTask& t)
      : p(*t.params),
        sequence(t.sequence),
        kv_head(t.kv_head),
        token_begin(t.token_begin),
        tokens(t.tokens),
        group(p.heads / p.kv_heads),
        rows(group * t.tokens),
        dim(p.head_dim),
        padded_dim(padded_head_dim(p.head_dim)),
        first_pos(p.batch.positions[t.token_begin]),
        last_pos(first_pos + t.tokens - 1) {
    float* next = t.scratch;
    auto take = [&next](size_t floats) {
      float* taken = next;
      next += (floats + 15) / 16 * 16;
      return taken;
    };
    q = take(size_t(rows) * dim);
    scores = take(size_t(rows) * kBlockTokens);
    keys = take(size_t(dim) * kBlockTokens);
    values = take(size_t(padded_dim) * kBlockTokens);
    for (float*& memory : state_memory) memory = take(attention_state_floats(rows, dim));
  }

  int position(int row) const { return first_pos + row / group; }
  int first_key(int pos) const { return p.window > 0 && pos >= p.window ? pos - p.window + 1 : 0; }
  int first_segment() const { return first_key(first_pos) / kSegmentKeys; }
  int last_segment() const { return last_pos / kSegmentKeys; }

  size_t row_offset(int row) const {
    const size_t token = size_t(token_begin) + row / group;
    return (token * p.heads + size_t(kv_head) * group + row % group) * dim;
  }

  void load_queries() const {
    const float* in = static_cast<const float*>(p.q);
    for (int r = 0; r < rows; ++r) {
      const float* from = in + row_offset(r);
      float* to = q + size_t(r) * dim;
      int i = 0;
      for (; i + V::kWidth <= dim; i += V::kWidth) {
        V::store(to + i, V::mul(V::load(from + i), V::set1(p.scale)));
      }
      for (; i < dim; ++i) to[i] = from[i] * p.scale;
    }
  }

  void clear(const AttentionState& s) const {
    for (int r = 0; r < rows; ++r) {
      s.max[r] = kMinusInfinity;
      s.sum[r] = 0.0F;
    }
    const size_t floats = size_t(rows) * padded_dim;
    for (size_t i = 0; i < floats; i += V::kWidth) V::store(s.out + i, V::zero());
  }

  /// scores: raw in, exponentials out; updates the row's maximum and sum and rescales its output.
  void softmax_row(int row, int block_begin, const AttentionState& s) const {
    using F = typename V::F;
    constexpr int kVectors = kBlockTokens / V::kWidth;
    const int pos = position(row);
    const int end = pos + 1 - block_begin;
    const int begin = first_key(pos) - block_begin;
    float* x = scores + size_t(row) * kBlockTokens;
    const F minus_infinity = V::set1(kMinusInfinity);
    F lanes[kVectors];
    F largest = minus_infinity;
    const bool masked = begin > 0 || end < kBlockTokens;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      lanes[v] = V::load(x + v * V::kWidth);
      if (masked) {
        lanes[v] =
            V::keep_lanes(lanes[v], begin - v * V::kWidth, end - v * V::kWidth, minus_infinity);
      }
      largest = V::max(lanes[v], largest);
    }
    const float block_max = V::reduce_max(largest);
    const float old_max = s.max[row];
    const float new_max = block_max > old_max ? block_max : old_max;
    if (!(new_max > kMinusInfinity)) {  // no key of this row so far
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) V::store(x + v * V::kWidth, V::zero());
      return;
    }
    const F shift = V::set1(new_max);
    F part[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      lanes[v] = exp<V>(V::sub(lanes[v], shift));
      V::store(x + v * V::kWidth, lanes[v]);
      part[v % 4] = V::add(part[v % 4], lanes[v]);
    }
    const float sum = V::sum(V::add(V::add(part[0], part[1]), V::add(part[2], part[3])));
    if (new_max == old_max) {
      s.sum[row] += sum;
      return;
    }
    alignas(64) float scale_lanes[V::kWidth];
    const F scale = exp<V>(V::set1(old_max - new_max));
    V::store(scale_lanes, scale);
    s.sum[row] = s.sum[row] * scale_lanes[0] + sum;
    s.max[row] = new_max;
    float* out = s.out + size_t(row) * padded_dim;
    for (int i = 0; i < padded_dim; i += V::kWidth) {
      V::store(out + i, V::mul(V::load(out + i), scale));
    }
  }

  template <class T>
  void block(int index, const AttentionState& s) const {
    const int32_t* table =
        p.batch.block_tables + size_t(sequence) * size_t(p.batch.block_table_stride);
    const KvPool& kv = p.kv;
    constexpr bool kQuantised = std::is_same_v<T, int8_t>;
    const char* pool = static_cast<const char*>(kv.base);
    auto keys_of = [&](int32_t id) {
      return reinterpret_cast<const T*>(pool + size_t(id) * kv.block_bytes()) +
             size_t(p.layer) * kv.layer_elems() + size_t(kv_head) * kv.head_elems();
    };
    auto scales_of = [&](int part) {
      return reinterpret_cast<const KvScale*>(pool +
                                              kv.scales_at(table[index], p.layer, part, kv_head));
    };
    const T* k = keys_of(table[index]);
    const T* v = k + size_t(kv.kv_heads) * kv.head_elems();
    const bool last = index == last_pos / kBlockTokens;
    const T* next_k = last ? k : keys_of(table[index + 1]);
    const auto part_bytes = static_cast<int64_t>(kv.head_elems() * sizeof(T));
    const int block_begin = index * kBlockTokens;
    // Slots past the last query's position may hold anything: their scores are masked, their values
    // not touched (0 * NaN).
    const int used = last_pos + 1 - block_begin;
    const int end = used < kBlockTokens ? used : kBlockTokens;
    const int skipped = first_key(first_pos) - block_begin;
    const int begin = skipped > 0 ? skipped : 0;
    constexpr int kKeyVectors = kBlockTokens / V::kWidth;
    const bool many = kQuantised || rows >= kConvertRows;

    if (many) {
      if constexpr (kQuantised) {
        restore_keys<V>(k, scales_of(0), dim, keys);
      } else {
        convert<V>(k, keys, int64_t{dim} * kKeyVectors);
      }
      multiply<V>(q, dim, keys, kBlockTokens, dim, scores, kBlockTokens, false, rows, kKeyVectors,
                  nullptr, 0);
    } else {
      multiply<V>(q, dim, k, kBlockTokens, dim, scores, kBlockTokens, false, rows, kKeyVectors, v,
                  part_bytes);
    }
    for (int r = 0; r < rows; ++r) softmax_row(r, block_begin, s);

    const int vectors = padded_dim / V::kWidth;
    const float* weights = scores + begin;
    if (many || dim != padded_dim) {
      for (int key = begin; key < end; ++key) {
        const T* from = v + size_t(key) * dim;
        float* to = values + size_t(key) * padded_dim;
        if constexpr (kQuantised) {
          restore_values<V>(from, scales_of(1)[key], dim, to);
        } else {
          int i = 0;
          for (; i + V::kWidth <= dim; i += V::kWidth) V::store(to + i, V::load(from + i));
          for (; i < dim; ++i) to[i] = to_float(from[i]);
        }
        for (int i = dim; i < padded_dim; ++i) to[i] = 0.0F;
      }
      multiply<V>(weights, kBlockTokens, values + size_t(begin) * padded_dim, padded_dim,
                  end - begin, s.out, padded_dim, true, rows, vectors, nullptr, 0);
    } else {
      multiply<V>(weights, kBlockTokens, v + size_t(begin) * dim, dim, end - begin, s.out,
                  padded_dim, true, rows, vectors, next_k, part_bytes);
    }
  }

  /// The state of one segment, from nothing.
  template <class T>
  void segment_typed(int index, const AttentionState& s) const {
    clear(s);
    const int lowest = first_key(first_pos);
    const int begin = index * kSegmentKeys > lowest ? index * kSegmentKeys : lowest;
    const int end =
        (index + 1) * kSegmentKeys <= last_pos ? (index + 1) * kSegmentKeys : last_pos + 1;
    if (begin >= end) return;
    for (int b = begin / kBlockTokens; b <= (end - 1) / kBlockTokens; ++b) block<T>(b, s);
  }

  void segment(int index, const AttentionState& s) const {
    switch (p.kv.dtype) {
      case DType::kF16:
        return segment_typed<F16>(index, s);
      case DType::kBF16:
        return segment_typed<BF16>(index, s);
      case DType::kI8:
        return segment_typed<int8_t>(index, s);
      default:
        return segment_typed<float>(index, s);
    }
  }

  /// total += next
  void merge(const AttentionState& total, const AttentionState& next) const {
    for (int r = 0; r < rows; ++r) {
      if (!(next.max[r] > kMinusInfinity)) continue;
      float* out = total.out + size_t(r) * padded_dim;
      const float* add = next.out + size_t(r) * padded_dim;
      if (!(total.max[r] > kMinusInfinity)) {
        total.max[r] = next.max[r];
        total.sum[r] = next.sum[r];
        for (int i = 0; i < padded_dim; i += V::kWidth) V::store(out + i, V::load(add + i));
        continue;
      }
      const float largest = total.max[r] > next.max[r] ? total.max[r] : next.max[r];
      const auto scale_total = exp<V>(V::set1(total.max[r] - largest));
      const auto scale_next = exp<V>(V::set1(next.max[r] - largest));
      alignas(64) float lanes[2][V::kWidth];
      V::store(lanes[0], scale_total);
      V::store(lanes[1], scale_next);
      total.max[r] = largest;
      total.sum[r] = total.sum[r] * lanes[0][0] + next.sum[r] * lanes[1][0];
      for (int i = 0; i < padded_dim; i += V::kWidth) {
        V::store(out + i,
                 V::fma(V::load(add + i), scale_next, V::mul(V::load(out + i), scale_total)));
      }
    }
  }

  void write(const AttentionState& s) const {
    float* result = static_cast<float*>(p.out);
    for (int r = 0; r < rows; ++r) {
      float* to = result + row_offset(r);
      const float* from = s.out + size_t(r) * padded_dim;
      const auto sum = V::set1(s.sum[r]);
      int i = 0;
      for (; i + V::kWidth <= dim; i += V::kWidth) V::store(to + i, V::div(V::load(from + i), sum));
      for (; i < dim; ++i) to[i] = from[i] / s.sum[r];
    }
  }
};

template <class V>
inline void attention(const AttentionTask& t) {
  const AttentionRows<V> a(t);
  a.load_queries();
  const AttentionState total(a.state_memory[0], a.rows);
  const AttentionState next(a.state_memory[1], a.rows);
  a.segment(a.first_segment(), total);
  for (int s = a.first_segment() + 1; s <= a.last_segment(); ++s) {
    a.segment(s, next);
    a.merge(total, next);
  }
  a.write(total);
}

template <class V>
inline void attention_segment(const AttentionTask& t, int segment, float* state) {
  const AttentionRows<V> a(t);
  a.load_queries();
  a.segment(segment, AttentionState(state, a.rows));
}

template <class V>
inline void attention_merge(const AttentionTask& t, const float* states, size_t stride, int count) {
  const AttentionRows<V> a(t);
  const AttentionState total(a.state_memory[0], a.rows);
  a.clear(total);
  for (int i = 0; i < count; ++i) {
    a.merge(total, AttentionState(const_cast<float*>(states + size_t(i) * stride), a.rows));
  }
  a.write(total);
}

}  // namespace treadle::ops::cpu
