// Operations that treat every token by itself, and copies.
#include <algorithm>
#include <cstring>

#include "ops/cpu/backend.h"

namespace treadle::ops::cpu {
namespace {

// Elements that are worth handing to another thread.
constexpr int64_t kGrainElements = 16 << 10;

int64_t token_grain(int64_t elements_per_token) {
  return elements_per_token > 0 ? (kGrainElements + elements_per_token - 1) / elements_per_token
                                : 1;
}

size_t row_of(int32_t id) { return static_cast<size_t>(std::max(id, 0)); }

}  // namespace

void embed(Backend& b, const EmbedParams& p) {
  const int64_t hidden = p.hidden;
  float* out = static_cast<float*>(p.out);
  if (p.table != nullptr) {
    const char* table = static_cast<const char*>(p.table);
    const size_t row_bytes = size_t(hidden) * dtype_size(p.table_dtype);
    b.pool.parallel_ranges(
        p.num_tokens, token_grain(hidden), [&](int64_t begin, int64_t end, int /*thread*/) {
          for (int64_t t = begin; t < end; ++t) {
            b.kernels->to_float(p.table_dtype, table + row_of(p.ids[t]) * row_bytes, 1, hidden,
                                out + t * hidden);
          }
        });
    return;
  }
  // A row of the packed head is a column of a panel: one cache line or two for each element.
  const size_t element = dtype_size(p.tied->dtype);
  const char* panels = static_cast<const char*>(p.tied->data);
  b.pool.parallel_ranges(
      p.num_tokens, token_grain(hidden * 16), [&](int64_t begin, int64_t end, int /*thread*/) {
        for (int64_t t = begin; t < end; ++t) {
          const size_t panel = row_of(p.ids[t]) / kPanel;
          const size_t column = row_of(p.ids[t]) % kPanel;
          const char* first = panels + (panel * size_t(hidden) * kPanel + column) * element;
          b.kernels->to_float(p.tied->dtype, first, kPanel, hidden, out + t * hidden);
        }
      });
}

void rms_norm(Backend& b, const NormTask& task, int64_t rows) {
  b.pool.parallel_ranges(
      rows, token_grain(task.width),
      [&](int64_t begin, int64_t end, int /*thread*/) { b.kernels->rms_norm(task, begin, end); });
}

void qkv(Backend& b, const QkvParams& p) {
  b.reserve_scratch(2 * size_t(p.head_dim) + size_t(p.rotary_dim));
  const int64_t features = int64_t{p.heads + 2 * p.kv_heads} * p.head_dim;
  b.pool.parallel_ranges(p.batch.num_tokens, token_grain(4 * features),
                         [&](int64_t begin, int64_t end, int thread) {
                           b.kernels->qkv(p, begin, end, b.scratch(thread));
                         });
}

void gather(Backend& b, const GatherParams& p) {
  const float* in = static_cast<const float*>(p.in);
  float* out = static_cast<float*>(p.out);
  b.pool.parallel_ranges(p.num_rows, token_grain(p.hidden),
                         [&](int64_t begin, int64_t end, int /*thread*/) {
                           for (int64_t r = begin; r < end; ++r) {
                             std::memcpy(out + r * p.hidden, in + int64_t{p.rows[r]} * p.hidden,
                                         size_t(p.hidden) * sizeof(float));
                           }
                         });
}

void copy_block(Backend& b, const CopyBlockParams& p) {
  const size_t bytes = p.kv.block_bytes();
  const char* from = static_cast<const char*>(p.kv.base) + size_t(p.src) * bytes;
  char* to = static_cast<char*>(p.kv.base) + size_t(p.dst) * bytes;
  if (from == to) return;
  b.pool.parallel_ranges(static_cast<int64_t>(bytes), 256 << 10,
                         [&](int64_t begin, int64_t end, int /*thread*/) {
                           std::memcpy(to + begin, from + begin, size_t(end - begin));
                         });
}

}  // namespace treadle::ops::cpu
