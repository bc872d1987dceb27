// Who holds each KV block: reference counts, the three states and the order of eviction.
//
//   free    nobody's; its content means nothing
//   active  referenced by at least one running sequence
//   cached  referenced by nobody, content kept for reuse; evicted least recently used first
//
// Every operation is O(1), however many blocks are cached. Not thread safe: the engine thread's.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace treadle::kv {

using BlockId = int32_t;
constexpr BlockId kNoBlock = -1;

enum class BlockState : uint8_t { kFree, kActive, kCached };

class BlockPool {
 public:
  /// `on_evict(block)` is called before a cached block is handed out again.
  explicit BlockPool(int32_t num_blocks, std::function<void(BlockId)> on_evict = {});

  /// A block with one reference for the caller to write: a free one, else the least recently used
  /// cached one; kNoBlock when all are active.
  BlockId allocate();
  /// One more reference; a cached block becomes active.
  void retain(BlockId block);
  /// One reference less. With the last one the block becomes cached (as most recently used) when
  /// its content is worth keeping, else free.
  void release(BlockId block);
  /// Whether the content is to be kept after the last release. Un-keeping a cached block frees it.
  void set_keep(BlockId block, bool keep);

  BlockState state(BlockId block) const;
  int32_t references(BlockId block) const { return info_[block].references; }
  /// Changes each time the block is handed out, so that a remembered (block, stamp) can be checked.
  uint32_t stamp(BlockId block) const { return info_[block].stamp; }

  int32_t size() const { return static_cast<int32_t>(info_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_cached() const { return num_cached_; }
  int32_t num_active() const { return size() - num_free() - num_cached_; }
  /// Blocks that allocate() can still give.
  int32_t num_available() const { return num_free() + num_cached_; }
  uint64_t num_evicted() const { return num_evicted_; }

  /// Empty when counts, lists and states agree, else what does not. For tests; O(size).
  const char* check_invariants() const;

 private:
  struct Info {
    int32_t references = 0;
    uint32_t stamp = 0;
    bool keep = false;
    bool cached = false;
    BlockId older = kNoBlock;  // neighbours in the eviction order while cached
    BlockId newer = kNoBlock;
  };

  void link_newest(BlockId block);
  void unlink(BlockId block);

  std::vector<Info> info_;
  std::vector<BlockId> free_;
  BlockId oldest_ = kNoBlock;
  BlockId newest_ = kNoBlock;
  int32_t num_cached_ = 0;
  uint64_t num_evicted_ = 0;
  std::function<void(BlockId)> on_evict_;
};

}  // namespace treadle::kv
