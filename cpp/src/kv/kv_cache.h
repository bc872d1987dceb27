// The KV cache as sequences see it: growing, sharing, reusing and giving back blocks.
//
// Bookkeeping only: no KV memory is touched here. Copies that must happen before the next step are
// handed out as (src, dst) pairs. Not thread safe: the engine thread's.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kv/block_pool.h"
#include "kv/prefix_index.h"

namespace treadle::kv {

/// The blocks of one sequence: block i holds positions [64 i, 64 i + 64).
struct SequenceKv {
  std::vector<BlockId> blocks;
  int32_t num_tokens = 0;   // positions [0, num_tokens) hold the KV of the sequence's tokens
  int32_t num_indexed = 0;  // leading blocks that went through the prefix index
  ContentKey last_key = kSharedRoot;  // content key of the last of them, or the root
  /// Positions from here on are neither reused nor offered for reuse: with dynamic NTK their keys
  /// are rotated in a way that only this request knows.
  int32_t share_limit = std::numeric_limits<int32_t>::max();
};

/// What a session remembers of its last, partly filled block. Valid until the block is evicted or
/// filled up by somebody else.
struct SessionTail {
  BlockId block = kNoBlock;
  uint32_t stamp = 0;
  int32_t num_tokens = 0;  // of the whole history, with this block
};

struct BlockCopy {
  BlockId src;
  BlockId dst;
};

constexpr int32_t blocks_for(int32_t tokens) {
  return (tokens + ops::kBlockTokens - 1) / ops::kBlockTokens;
}

class KvCache {
 public:
  explicit KvCache(int32_t num_blocks);
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  /// Root for sequences whose blocks are shared with nobody else.
  ContentKey new_private_root() { return index_.new_root(); }

  /// Attaches to the empty `seq` the blocks, cached or active, that hold leading tokens of `ids`
  /// under `root`, and returns how many tokens that are: at most ids.size() - 1, since the last
  /// token's logits are always wanted.
  int32_t match(std::span<const int32_t> ids, ContentKey root, const SessionTail& tail,
                SequenceKv& seq);

  /// Blocks that reserve(seq, num_tokens) would take.
  int32_t blocks_needed(const SequenceKv& seq, int32_t num_tokens) const;

  /// Makes room for positions [seq.num_tokens, num_tokens). A last block that others also hold is
  /// replaced by a copy, added to `copies`. All or nothing: false when there are too few blocks.
  bool reserve(SequenceKv& seq, int32_t num_tokens, std::vector<BlockCopy>& copies);

  /// The step that wrote positions up to num_tokens is done; blocks that became full are indexed,
  /// or given back for the block that already holds the same. `ids` are the sequence's tokens, at
  /// least num_tokens of them.
  void commit(SequenceKv& seq, std::span<const int32_t> ids, int32_t num_tokens);

  /// `child` (empty) gets the same blocks.
  void fork(const SequenceKv& parent, SequenceKv& child);

  /// Gives everything back, deepest block first, so that prefixes outlive what follows them.
  /// With `tail` the partly filled last block is kept for a session.
  void release(SequenceKv& seq, SessionTail* tail = nullptr);

  /// Gives everything back and keeps nothing: for private roots that nobody comes back to. Blocks
  /// that another sequence holds are left for that one to discard.
  void discard(SequenceKv& seq);

  /// Forgets a session's tail.
  void drop_tail(SessionTail& tail);

  /// Frees the cached blocks of a private root's chain that `ids` lead to.
  void drop_private(std::span<const int32_t> ids, ContentKey root);

  const BlockPool& pool() const { return pool_; }
  const PrefixIndex& index() const { return index_; }
  uint64_t num_copied() const { return num_copied_; }

 private:
  bool tail_alive(const SessionTail& tail) const;

  PrefixIndex index_;
  BlockPool pool_;
  uint64_t num_copied_ = 0;
};

}  // namespace treadle::kv
