// Attention: the batch cut into tasks of a few queries, long ones also along their keys.
#include <algorithm>

#include "ops/cpu/backend.h"

namespace treadle::ops::cpu {
namespace {

// Rows (query heads of tokens) that share one pass over the keys; fewer where that would leave
// threads without work.
constexpr int kTileRows = 66;
constexpr int kLeastTileRows = 12;

// Memory for partial results: 16 MiB.
constexpr size_t kMostStateFloats = size_t{4} << 20;

AttentionTask task_of(const AttentionParams& p, const Backend::AttentionTile& tile, int32_t kv_head,
                      float* scratch) {
  AttentionTask t;
  t.params = &p;
  t.sequence = tile.sequence;
  t.kv_head = kv_head;
  t.token_begin = tile.token_begin;
  t.tokens = tile.tokens;
  t.scratch = scratch;
  return t;
}

/// Fills attention_tiles, and the output of padding. Returns the largest number of tokens in a
/// tile.
int cut_tiles(Backend& b, const AttentionParams& p) {
  const SequenceBatch& batch = p.batch;
  const int group = p.heads / p.kv_heads;
  int rows = kTileRows;
  const int64_t all_rows = int64_t{batch.num_tokens} * p.heads;
  while (rows / 2 >= kLeastTileRows && all_rows / rows < int64_t{4} * b.pool.num_threads()) {
    rows /= 2;
  }
  const int most_tokens = std::max(1, rows / group);
  int widest = 1;
  b.attention_tiles.clear();
  for (int32_t s = 0; s < batch.num_sequences; ++s) {
    const int32_t begin = batch.query_begin[s];
    const int32_t length = batch.query_begin[s + 1] - begin;
    if (batch.context_len[s] == 0) {  // padding
      const size_t row = size_t(p.heads) * size_t(p.head_dim);
      float* out = static_cast<float*>(p.out) + size_t(begin) * row;
      std::fill_n(out, size_t(length) * row, 0.0F);
      continue;
    }
    for (int32_t at = 0; at < length; at += most_tokens) {
      Backend::AttentionTile tile{};
      tile.sequence = s;
      tile.token_begin = begin + at;
      tile.tokens = std::min(most_tokens, length - at);
      const int32_t first_pos = batch.positions[tile.token_begin];
      const int32_t first_key =
          p.window > 0 && first_pos >= p.window ? first_pos - p.window + 1 : 0;
      tile.first_segment = first_key / kSegmentKeys;
      tile.segments = (first_pos + tile.tokens - 1) / kSegmentKeys + 1 - tile.first_segment;
      tile.state_floats = attention_state_floats(tile.tokens * group, p.head_dim);
      widest = std::max(widest, tile.tokens);
      b.attention_tiles.push_back(tile);
    }
  }
  return widest;
}

/// Splits tiles that alone would keep one thread busy while the others wait. Only who computes a
/// segment depends on this, never its result.
size_t split_tiles(Backend& b, const AttentionParams& p) {
  int64_t total = 0;
  for (const auto& tile : b.attention_tiles) total += int64_t{tile.segments} * p.kv_heads;
  const int64_t share = total / (int64_t{2} * b.pool.num_threads());
  size_t state_floats = 0;
  for (auto& tile : b.attention_tiles) {
    const size_t wanted = tile.state_floats * size_t(tile.segments) * size_t(p.kv_heads);
    tile.split = b.pool.num_threads() > 1 && tile.segments > 1 && tile.segments > share &&
                 state_floats + wanted <= kMostStateFloats;
    if (!tile.split) continue;
    tile.states = state_floats;
    state_floats += wanted;
  }
  return state_floats;
}

float* state_of(Backend& b, const Backend::AttentionTile& tile, int32_t kv_head, int32_t segment) {
  const size_t index = size_t(kv_head) * size_t(tile.segments) + size_t(segment);
  return b.attention_states.data() + tile.states + index * tile.state_floats;
}

}  // namespace

void attention(Backend& b, const AttentionParams& p) {
  if (p.batch.num_tokens <= 0) return;
  const int widest = cut_tiles(b, p);
  b.reserve_scratch(attention_scratch_floats(widest * (p.heads / p.kv_heads), p.head_dim));
  const size_t state_floats = split_tiles(b, p);
  if (b.attention_states.size() < state_floats) b.attention_states.resize(state_floats);

  b.attention_items.clear();
  b.attention_merges.clear();
  // The last tiles of a prompt have the most keys: they go first.
  for (int32_t i = static_cast<int32_t>(b.attention_tiles.size()) - 1; i >= 0; --i) {
    const auto& tile = b.attention_tiles[size_t(i)];
    for (int32_t h = 0; h < p.kv_heads; ++h) {
      if (!tile.split) {
        b.attention_items.push_back({i, h, -1});
        continue;
      }
      for (int32_t s = 0; s < tile.segments; ++s) b.attention_items.push_back({i, h, s});
      b.attention_merges.push_back({i, h, -1});
    }
  }

  b.pool.parallel_for(static_cast<int64_t>(b.attention_items.size()), [&](int64_t i, int thread) {
    const auto& item = b.attention_items[size_t(i)];
    const auto& tile = b.attention_tiles[size_t(item.tile)];
    const AttentionTask task = task_of(p, tile, item.kv_head, b.scratch(thread));
    if (item.segment < 0) {
      b.kernels->attention(task);
    } else {
      b.kernels->attention_segment(task, tile.first_segment + item.segment,
                                   state_of(b, tile, item.kv_head, item.segment));
    }
  });
  if (b.attention_merges.empty()) return;
  b.pool.parallel_for(static_cast<int64_t>(b.attention_merges.size()), [&](int64_t i, int thread) {
    const auto& item = b.attention_merges[size_t(i)];
    const auto& tile = b.attention_tiles[size_t(item.tile)];
    b.kernels->attention_merge(task_of(p, tile, item.kv_head, b.scratch(thread)),
                               state_of(b, tile, item.kv_head, 0), tile.state_floats,
                               tile.segments);
  });
}

}  // namespace treadle::ops::cpu
