#include "kv/prefix_index.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace treadle::kv {
namespace {

// Multiply-and-fold over 8-byte words. Quality only matters for speed: hits are compared exactly.
uint64_t hash_block(ContentKey parent, BlockTokens tokens) {
  uint64_t h = parent * 0x9E3779B97F4A7C15ULL + 0x632BE59BD9B4E019ULL;
  for (size_t i = 0; i < tokens.size(); i += 2) {
    uint64_t word = 0;
    std::memcpy(&word, tokens.data() + i, sizeof(word));
    h = (h ^ word) * 0xD6E8FEB86659FD93ULL;
    h ^= h >> 32;
  }
  return h;
}

}  // namespace

PrefixIndex::PrefixIndex(int32_t num_blocks) : nodes_(static_cast<size_t>(num_blocks)) {
  by_hash_.reserve(nodes_.size());  // or it would grow, all at once, in the middle of a step
}

BlockId PrefixIndex::find(ContentKey parent, BlockTokens tokens) const {
  auto [it, end] = by_hash_.equal_range(hash_block(parent, tokens));
  for (; it != end; ++it) {
    const Node& node = nodes_[it->second];
    if (node.parent == parent && std::ranges::equal(node.tokens, tokens)) return it->second;
  }
  return kNoBlock;
}

BlockId PrefixIndex::insert(BlockId block, ContentKey parent, BlockTokens tokens) {
  assert(!contains(block));
  if (const BlockId twin = find(parent, tokens); twin != kNoBlock) return twin;
  Node& node = nodes_[block];
  node.key = next_key_++;
  node.parent = parent;
  node.hash = hash_block(parent, tokens);
  std::ranges::copy(tokens, node.tokens.begin());
  by_hash_.emplace(node.hash, block);
  return block;
}

void PrefixIndex::erase(BlockId block) {
  Node& node = nodes_[block];
  if (node.key == kNone) return;
  auto [it, end] = by_hash_.equal_range(node.hash);
  it = std::find_if(it, end, [block](const auto& entry) { return entry.second == block; });
  by_hash_.erase(it);
  node.key = kNone;
}

}  // namespace treadle::kv
