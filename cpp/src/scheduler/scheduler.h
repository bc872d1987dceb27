// Decides what the next step runs: who is admitted, how much of which prompt, who must give way.
//
// Touches no device memory and knows nothing of requests or sampling. Not thread safe: the engine
// thread's. Sequences are borrowed; the engine keeps them alive while they are in here.
#pragma once

#include <cstdint>
#include <vector>

#include "kv/kv_cache.h"
#include "scheduler/sequence.h"

namespace treadle {

struct ScheduledSequence {
  Sequence* sequence;  // null in a step that was queued ahead: its place is padding
  int32_t query_len;   // tokens ids[kv.num_tokens .. kv.num_tokens + query_len) run in this step
};

/// One step: sequences that bring one token first, then prompt chunks, each by rank.
struct Decision {
  std::vector<ScheduledSequence> scheduled;
  int32_t num_decode = 0;
  int32_t num_tokens = 0;
  std::vector<kv::BlockCopy> copies;  // to be done, in order, before the step
  std::vector<Sequence*> admitted;    // left the line in this step
  void clear();
};

struct SchedulerLimits {
  int32_t max_batch_size = 64;
  int32_t max_prefill_tokens = 512;  // prompt tokens per step
  // Prompt tokens of a step in which sequences decode: at most so many, or twice the decode tokens
  // where that is more. Bounds how long a stream waits for its next token while prompts come in. In
  // a burst, where eight prompts or more wait and a quarter as many as sequences decode, or more
  // of prompts than two steps of max_prefill_tokens take, the prompts count more: no such bound.
  // 0 = max_prefill_tokens.
  int32_t mixed_prefill_tokens = 0;
};

class Scheduler {
 public:
  Scheduler(kv::KvCache& kv, SchedulerLimits limits);

  /// Puts a sequence in the waiting line, at the place its rank gives it.
  void enqueue(Sequence* sequence);
  /// A continuation forked off a running sequence joins the batch; its slot was held by the parent.
  void join(Sequence* parent, Sequence* child);
  /// Takes a sequence out, wherever it is. Its KV is the caller's to release.
  void remove(Sequence* sequence);

  /// Fills `decision` (cleared first) with the next step. Empty only when nothing is runnable.
  ///
  ///   1. every sequence that only lacks its newest token gets it, by rank; when blocks run out the
  ///      running sequence of lowest rank is preempted: its blocks are released, it waits again
  ///      with all its ids and is recomputed later, so the one of highest rank always makes
  ///      progress;
  ///   2. what is left of max_prefill_tokens, at most SchedulerLimits::mixed_prefill_tokens, goes
  ///      to prompt chunks of running sequences;
  ///   3. then sequences are admitted from the line while slots last and the pool has blocks for
  ///      the whole prompt, which are taken at once.
  void schedule(Decision& decision);

  /// The step after `running`, a step of decode tokens alone whose tokens are not known yet.
  /// next.scheduled holds its sequences, null in the place of those that end with it; each of the
  /// others brings one more token. False when something else has to be scheduled as well, somebody
  /// who waits could be admitted, or blocks run out.
  bool schedule_behind(const Decision& running, Decision& next);

  const std::vector<Sequence*>& running() const { return running_; }
  const std::vector<Sequence*>& waiting() const { return waiting_; }
  bool idle() const { return running_.empty() && waiting_.empty(); }
  uint64_t num_preemptions() const { return num_preemptions_; }
  /// Sums of what Sequence::computed_tokens and cached_tokens count for one.
  uint64_t num_computed_tokens() const { return num_computed_tokens_; }
  uint64_t num_cached_tokens() const { return num_cached_tokens_; }

 private:
  void grow_decodes(Decision& decision);
  void preempt(Sequence* sequence);
  bool admit(Sequence* sequence, Decision& decision);
  void take_chunk(Sequence* sequence, int32_t& budget, Decision& decision);
  void count_computed(Sequence* sequence, int32_t query_len);
  bool is_burst(int32_t num_decode) const;
  int32_t prompt_budget(int32_t num_decode) const;

  kv::KvCache& kv_;
  const SchedulerLimits limits_;
  std::vector<Sequence*> running_;  // by rank
  std::vector<Sequence*> waiting_;  // by rank, last first: the next to admit is at the back
  int32_t slots_used_ = 0;
  uint64_t num_preemptions_ = 0;
  uint64_t num_computed_tokens_ = 0;
  uint64_t num_cached_tokens_ = 0;
};

}  // namespace treadle
