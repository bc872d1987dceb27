// Finds full blocks by what they hold: key = (key of the block before, the 64 token ids), compared
// exactly, so equal keys mean equal prefixes from the first token on.
//
// Not thread safe: the engine thread's.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kv/block_pool.h"
#include "ops/types.h"

namespace treadle::kv {

/// Names the content of a block and of everything before it. Never reused.
using ContentKey = uint64_t;
/// Parent of first blocks that every request may share.
constexpr ContentKey kSharedRoot = 0;

using BlockTokens = std::span<const int32_t, ops::kBlockTokens>;

class PrefixIndex {
 public:
  explicit PrefixIndex(int32_t num_blocks);

  /// The block that holds `tokens` after `parent`, or kNoBlock.
  BlockId find(ContentKey parent, BlockTokens tokens) const;

  /// Registers a block, which must not be registered, and returns it; or, when another block
  /// already holds the same content, returns that one.
  BlockId insert(BlockId block, ContentKey parent, BlockTokens tokens);

  /// Forgets a block; nothing when it is not registered.
  void erase(BlockId block);

  bool contains(BlockId block) const { return nodes_[block].key != kNone; }
  ContentKey key(BlockId block) const { return nodes_[block].key; }
  /// A root that no other caller has: blocks under it are private to whom it was given.
  ContentKey new_root() { return next_key_++; }
  size_t size() const { return by_hash_.size(); }

 private:
  static constexpr ContentKey kNone = ~ContentKey{0};

  struct Node {
    ContentKey key = kNone;
    ContentKey parent = kNone;
    uint64_t hash = 0;
    std::array<int32_t, ops::kBlockTokens> tokens;  // meaningful while key is set
  };

  std::vector<Node> nodes_;
  std::unordered_multimap<uint64_t, BlockId> by_hash_;
  ContentKey next_key_ = kSharedRoot + 1;
};

}  // namespace treadle::kv
