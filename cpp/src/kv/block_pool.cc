#include "kv/block_pool.h"

#include <cassert>
#include <utility>

namespace treadle::kv {

BlockPool::BlockPool(int32_t num_blocks, std::function<void(BlockId)> on_evict)
    : info_(static_cast<size_t>(num_blocks)), on_evict_(std::move(on_evict)) {
  free_.reserve(info_.size());
  for (BlockId b = num_blocks - 1; b >= 0; --b) free_.push_back(b);
}

BlockId BlockPool::allocate() {
  BlockId block = kNoBlock;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (oldest_ != kNoBlock) {
    block = oldest_;
    if (on_evict_) on_evict_(block);
    unlink(block);
    ++num_evicted_;
  } else {
    return kNoBlock;
  }
  Info& info = info_[block];
  info.references = 1;
  info.keep = false;
  ++info.stamp;
  return block;
}

void BlockPool::retain(BlockId block) {
  Info& info = info_[block];
  assert(info.references > 0 || info.cached);
  if (info.cached) unlink(block);
  ++info.references;
}

void BlockPool::release(BlockId block) {
  Info& info = info_[block];
  assert(info.references > 0);
  if (--info.references > 0) return;
  if (info.keep) {
    link_newest(block);
  } else {
    free_.push_back(block);
  }
}

void BlockPool::set_keep(BlockId block, bool keep) {
  Info& info = info_[block];
  info.keep = keep;
  if (!keep && info.cached) {
    unlink(block);
    free_.push_back(block);
  }
}

BlockState BlockPool::state(BlockId block) const {
  const Info& info = info_[block];
  if (info.references > 0) return BlockState::kActive;
  return info.cached ? BlockState::kCached : BlockState::kFree;
}

void BlockPool::link_newest(BlockId block) {
  Info& info = info_[block];
  info.cached = true;
  info.older = newest_;
  info.newer = kNoBlock;
  if (newest_ != kNoBlock) info_[newest_].newer = block;
  newest_ = block;
  if (oldest_ == kNoBlock) oldest_ = block;
  ++num_cached_;
}

void BlockPool::unlink(BlockId block) {
  Info& info = info_[block];
  (info.older == kNoBlock ? oldest_ : info_[info.older].newer) = info.newer;
  (info.newer == kNoBlock ? newest_ : info_[info.newer].older) = info.older;
  info.cached = false;
  info.older = info.newer = kNoBlock;
  --num_cached_;
}

const char* BlockPool::check_invariants() const {
  std::vector<uint8_t> seen(info_.size(), 0);
  for (BlockId b : free_) {
    if (seen[b]++) return "a block is twice in the free list";
    if (info_[b].references != 0 || info_[b].cached) return "a free block is in use";
  }
  int32_t cached = 0;
  BlockId previous = kNoBlock;
  for (BlockId b = oldest_; b != kNoBlock; b = info_[b].newer) {
    if (seen[b]++) return "a cached block is listed twice or free";
    if (!info_[b].cached || info_[b].references != 0) return "a listed block is not cached";
    if (!info_[b].keep) return "a cached block is not worth keeping";
    if (info_[b].older != previous) return "the eviction order is broken";
    previous = b;
    ++cached;
  }
  if (previous != newest_ || cached != num_cached_) return "the cached count is wrong";
  for (size_t b = 0; b < info_.size(); ++b) {
    if (info_[b].references < 0) return "a reference count is negative";
    if (seen[b] == 0 && info_[b].references == 0) return "a block is lost";
  }
  return "";
}

}  // namespace treadle::kv
