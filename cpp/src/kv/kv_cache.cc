#include "kv/kv_cache.h"

#include <algorithm>
#include <cassert>

namespace treadle::kv {
namespace {

constexpr int32_t kTokens = ops::kBlockTokens;

BlockTokens tokens_of_block(std::span<const int32_t> ids, int32_t block) {
  return BlockTokens(ids.data() + static_cast<size_t>(block) * kTokens, kTokens);
}

}  // namespace

KvCache::KvCache(int32_t num_blocks)
    : index_(num_blocks), pool_(num_blocks, [this](BlockId b) { index_.erase(b); }) {}

bool KvCache::tail_alive(const SessionTail& tail) const {
  // Another continuation may have filled the block up: then it is indexed, and nobody writes to it.
  return tail.block != kNoBlock && pool_.state(tail.block) != BlockState::kFree &&
         pool_.stamp(tail.block) == tail.stamp && !index_.contains(tail.block);
}

int32_t KvCache::match(std::span<const int32_t> ids, ContentKey root, const SessionTail& tail,
                       SequenceKv& seq) {
  assert(seq.blocks.empty());
  seq.last_key = root;
  const int32_t limit = std::min(static_cast<int32_t>(ids.size()) - 1, seq.share_limit);
  for (int32_t b = 0; (b + 1) * kTokens <= limit; ++b) {
    const BlockId block = index_.find(seq.last_key, tokens_of_block(ids, b));
    if (block == kNoBlock) break;
    pool_.retain(block);
    seq.blocks.push_back(block);
    seq.last_key = index_.key(block);
  }
  seq.num_indexed = static_cast<int32_t>(seq.blocks.size());
  seq.num_tokens = seq.num_indexed * kTokens;
  // A tail counts only when everything before it is there.
  if (tail_alive(tail) && tail.num_tokens / kTokens == seq.num_indexed &&
      seq.num_tokens < std::min(tail.num_tokens, limit)) {
    pool_.retain(tail.block);
    seq.blocks.push_back(tail.block);
    seq.num_tokens = std::min(tail.num_tokens, limit);
  }
  return seq.num_tokens;
}

int32_t KvCache::blocks_needed(const SequenceKv& seq, int32_t num_tokens) const {
  const int32_t more = blocks_for(num_tokens) - static_cast<int32_t>(seq.blocks.size());
  const bool copies_last = num_tokens > seq.num_tokens && seq.num_tokens % kTokens != 0 &&
                           pool_.references(seq.blocks[seq.num_tokens / kTokens]) > 1;
  return std::max(more, 0) + (copies_last ? 1 : 0);
}

bool KvCache::reserve(SequenceKv& seq, int32_t num_tokens, std::vector<BlockCopy>& copies) {
  if (blocks_needed(seq, num_tokens) > pool_.num_available()) return false;
  if (num_tokens > seq.num_tokens && seq.num_tokens % kTokens != 0) {
    BlockId& last = seq.blocks[seq.num_tokens / kTokens];
    if (pool_.references(last) > 1) {
      const BlockId copy = pool_.allocate();
      copies.push_back({.src = last, .dst = copy});
      pool_.release(last);
      last = copy;
      ++num_copied_;
    }
  }
  while (static_cast<int32_t>(seq.blocks.size()) < blocks_for(num_tokens)) {
    seq.blocks.push_back(pool_.allocate());
  }
  return true;
}

void KvCache::commit(SequenceKv& seq, std::span<const int32_t> ids, int32_t num_tokens) {
  assert(num_tokens <= static_cast<int32_t>(ids.size()));
  seq.num_tokens = num_tokens;
  const int32_t limit = std::min(num_tokens, seq.share_limit);
  for (; (seq.num_indexed + 1) * kTokens <= limit; ++seq.num_indexed) {
    BlockId& block = seq.blocks[seq.num_indexed];
    const BlockId holder =
        index_.insert(block, seq.last_key, tokens_of_block(ids, seq.num_indexed));
    if (holder != block) {
      // Computed twice. Going on with the indexed one frees memory, and keeps a block from being
      // evicted before those that follow it.
      pool_.retain(holder);
      pool_.set_keep(block, false);
      pool_.release(block);
      block = holder;
    }
    pool_.set_keep(block, true);
    seq.last_key = index_.key(block);
  }
}

void KvCache::fork(const SequenceKv& parent, SequenceKv& child) {
  assert(child.blocks.empty());
  child = parent;
  // Room reserved past the valid tokens stays the parent's own.
  child.blocks.resize(blocks_for(parent.num_tokens));
  for (BlockId block : child.blocks) pool_.retain(block);
}

void KvCache::release(SequenceKv& seq, SessionTail* tail) {
  const int32_t partial = seq.num_tokens % kTokens != 0 ? seq.num_tokens / kTokens : -1;
  for (int32_t b = static_cast<int32_t>(seq.blocks.size()) - 1; b >= 0; --b) {
    const BlockId block = seq.blocks[b];
    if (b == partial) {
      const bool keep = tail != nullptr && seq.num_tokens <= seq.share_limit;
      if (keep) *tail = {.block = block, .stamp = pool_.stamp(block), .num_tokens = seq.num_tokens};
      if (keep || pool_.references(block) == 1) pool_.set_keep(block, keep);
    }
    pool_.release(block);
  }
  seq.blocks.clear();
  seq.num_tokens = seq.num_indexed = 0;
  seq.last_key = kSharedRoot;
}

void KvCache::discard(SequenceKv& seq) {
  for (const BlockId block : seq.blocks) {
    if (pool_.references(block) > 1) continue;
    index_.erase(block);
    pool_.set_keep(block, false);
  }
  release(seq);
}

void KvCache::drop_tail(SessionTail& tail) {
  if (tail_alive(tail)) pool_.set_keep(tail.block, false);
  tail = {};
}

void KvCache::drop_private(std::span<const int32_t> ids, ContentKey root) {
  std::vector<BlockId> chain;
  for (int32_t b = 0; (b + 1) * kTokens <= static_cast<int32_t>(ids.size()); ++b) {
    const BlockId block = index_.find(root, tokens_of_block(ids, b));
    if (block == kNoBlock) break;
    root = index_.key(block);
    chain.push_back(block);
  }
  for (BlockId block : chain) {
    index_.erase(block);
    pool_.set_keep(block, false);
  }
}

}  // namespace treadle::kv
