// A sequence as the scheduler sees it. The engine derives what else it keeps about one from this.
#pragma once

#include <cstdint>
#include <vector>

#include "kv/kv_cache.h"

namespace treadle {

struct Sequence {
  // Rank: higher priority first, then earlier order, then lower index of a request's continuations.
  int32_t priority = 0;
  uint64_t order = 0;
  int32_t index = 0;

  std::vector<int32_t> ids;  // history, prompt and what was generated
  int32_t prompt_len = 0;    // of ids, history included
  kv::SequenceKv kv;         // ids[0..kv.num_tokens) went through the model
  kv::ContentKey root = kv::kSharedRoot;
  kv::SessionTail tail;         // the session's partly filled block, to be reused at admission
  bool may_reuse = true;        // false when every prompt position must be computed (logprobs)
  int32_t slots = 1;            // places in the batch it holds: itself and continuations to fork
  int32_t cached_tokens = 0;    // prompt tokens found in blocks at first admission
  int32_t computed_tokens = 0;  // tokens run through the model as prompt, recomputation included
  bool admitted_before = false;

  int32_t remaining() const { return static_cast<int32_t>(ids.size()) - kv.num_tokens; }
  int32_t generated() const { return static_cast<int32_t>(ids.size()) - prompt_len; }

  bool ranks_before(const Sequence& other) const {
    if (priority != other.priority) return priority > other.priority;
    if (order != other.order) return order < other.order;
    return index < other.index;
  }
};

}  // namespace treadle
