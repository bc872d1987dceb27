#include "scheduler/scheduler.h"

#include <algorithm>
#include <cassert>

namespace treadle {
namespace {

// Prompts advance by at least this many tokens a step, however many sequences decode.
constexpr int32_t kMinPrefillTokens = 64;

// More prompts at once than this may be a burst, more tokens of prompts than so many full steps
// take always are one.
constexpr int32_t kBurst = 7;
constexpr int64_t kBurstSteps = 2;

bool ranks_before(const Sequence* a, const Sequence* b) { return a->ranks_before(*b); }
bool ranks_after(const Sequence* a, const Sequence* b) { return b->ranks_before(*a); }

}  // namespace

void Decision::clear() {
  scheduled.clear();
  num_decode = 0;
  num_tokens = 0;
  copies.clear();
  admitted.clear();
}

Scheduler::Scheduler(kv::KvCache& kv, SchedulerLimits limits) : kv_(kv), limits_(limits) {
  running_.reserve(static_cast<size_t>(limits.max_batch_size));
}

void Scheduler::enqueue(Sequence* sequence) {
  waiting_.insert(std::ranges::upper_bound(waiting_, sequence, ranks_after), sequence);
}

void Scheduler::join(Sequence* parent, Sequence* child) {
  assert(parent->slots > 1);
  --parent->slots;
  child->slots = 1;
  child->admitted_before = true;
  running_.insert(std::ranges::upper_bound(running_, child, ranks_before), child);
}

void Scheduler::remove(Sequence* sequence) {
  if (std::erase(running_, sequence) > 0) {
    slots_used_ -= sequence->slots;
  } else {
    std::erase(waiting_, sequence);
  }
}

void Scheduler::preempt(Sequence* sequence) {
  remove(sequence);
  kv_.release(sequence->kv);
  sequence->tail = {};
  enqueue(sequence);
  ++num_preemptions_;
}

// Only sequences of lower rank are preempted, and those come later in running_: none of them is in
// the decision yet.
void Scheduler::grow_decodes(Decision& decision) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* sequence = running_[i];
    if (sequence->remaining() != 1) continue;
    const auto length = static_cast<int32_t>(sequence->ids.size());
    while (!kv_.reserve(sequence->kv, length, decision.copies)) {
      Sequence* last = running_.back();
      preempt(last);
      if (last == sequence) return;
    }
    count_computed(sequence, 1);
    decision.scheduled.push_back({.sequence = sequence, .query_len = 1});
  }
}

bool Scheduler::admit(Sequence* sequence, Decision& decision) {
  if (slots_used_ + sequence->slots > limits_.max_batch_size) return false;
  kv::SequenceKv& kv = sequence->kv;
  kv.last_key = sequence->root;
  if (sequence->may_reuse) kv_.match(sequence->ids, sequence->root, sequence->tail, kv);
  // Beside the prompt there must be a block for each running sequence to grow into, or the new one
  // would be preempted as soon as it got going. Alone it always fits: session_len is never more
  // than the pool holds.
  const auto length = static_cast<int32_t>(sequence->ids.size());
  const int32_t spare = static_cast<int32_t>(running_.size());
  if (kv_.blocks_needed(kv, length) + spare > kv_.pool().num_available() ||
      !kv_.reserve(kv, length, decision.copies)) {
    assert(!running_.empty());
    kv_.release(kv, sequence->tail.block == kv::kNoBlock ? nullptr : &sequence->tail);
    return false;
  }
  if (!sequence->admitted_before) {
    sequence->cached_tokens = kv.num_tokens;
    num_cached_tokens_ += static_cast<uint64_t>(kv.num_tokens);
  }
  sequence->admitted_before = true;
  slots_used_ += sequence->slots;
  running_.insert(std::ranges::upper_bound(running_, sequence, ranks_before), sequence);
  decision.admitted.push_back(sequence);
  return true;
}

// Prompt tokens, and generated ones that were computed before a preemption. The newest token of a
// sequence that generates is neither: it runs for the first time, whoever it runs with.
void Scheduler::count_computed(Sequence* sequence, int32_t query_len) {
  const int32_t begin = sequence->kv.num_tokens;
  const int32_t old =
      std::max(sequence->prompt_len, static_cast<int32_t>(sequence->ids.size()) - 1);
  const int32_t count = std::max(std::min(begin + query_len, old) - begin, 0);
  sequence->computed_tokens += count;
  num_computed_tokens_ += static_cast<uint64_t>(count);
}

void Scheduler::take_chunk(Sequence* sequence, int32_t& budget, Decision& decision) {
  const int32_t chunk = std::min(sequence->remaining(), budget);
  count_computed(sequence, chunk);
  decision.scheduled.push_back({.sequence = sequence, .query_len = chunk});
  decision.num_tokens += chunk;
  budget -= chunk;
}

bool Scheduler::is_burst(int32_t num_decode) const {
  const auto in_line =
      std::min(static_cast<int32_t>(waiting_.size()), limits_.max_batch_size - slots_used_);
  const int32_t prompts = static_cast<int32_t>(running_.size()) - num_decode + in_line;
  if (prompts > std::max(kBurst, num_decode / 4)) return true;
  // Few prompts from here on.
  int64_t tokens = 0;
  for (const Sequence* sequence : running_) {
    if (sequence->remaining() > 1) tokens += sequence->remaining();
  }
  for (int32_t i = 0; i < in_line; ++i) tokens += waiting_[waiting_.size() - 1 - i]->remaining();
  return tokens > kBurstSteps * limits_.max_prefill_tokens;
}

int32_t Scheduler::prompt_budget(int32_t num_decode) const {
  const int32_t all = limits_.max_prefill_tokens;
  const int32_t budget = std::max(all - num_decode, std::min(all, kMinPrefillTokens));
  if (num_decode == 0 || limits_.mixed_prefill_tokens == 0) return budget;
  if (is_burst(num_decode)) return budget;
  return std::min(budget, std::max(limits_.mixed_prefill_tokens, 2 * num_decode));
}

bool Scheduler::schedule_behind(const Decision& running, Decision& next) {
  auto now = running_.begin();
  int32_t slots = 0;
  int32_t blocks = 0;
  for (size_t i = 0; i < running.scheduled.size(); ++i) {
    const Sequence* sequence = running.scheduled[i].sequence;
    if (sequence == nullptr) continue;
    if (now == running_.end() || *now++ != sequence || sequence->remaining() != 0) return false;
    if (next.scheduled[i].sequence == nullptr) continue;
    slots += sequence->slots;
    blocks += kv_.blocks_needed(sequence->kv, static_cast<int32_t>(sequence->ids.size()) + 1);
  }
  if (now != running_.end() || blocks > kv_.pool().num_available()) return false;
  if (!waiting_.empty() && slots + waiting_.back()->slots <= limits_.max_batch_size) return false;
  for (const auto& [sequence, query_len] : next.scheduled) {
    if (sequence == nullptr) continue;
    kv_.reserve(sequence->kv, static_cast<int32_t>(sequence->ids.size()) + 1, next.copies);
  }
  next.num_decode = next.num_tokens = static_cast<int32_t>(next.scheduled.size());
  return true;
}

void Scheduler::schedule(Decision& decision) {
  decision.clear();

  // Decode first: a token that somebody waits for never queues behind a prompt.
  grow_decodes(decision);
  decision.num_decode = static_cast<int32_t>(decision.scheduled.size());
  decision.num_tokens = decision.num_decode;

  int32_t budget = prompt_budget(decision.num_decode);
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    if (running_[i]->remaining() > 1) take_chunk(running_[i], budget, decision);
  }
  while (!waiting_.empty() && budget > 0) {
    Sequence* next = waiting_.back();
    if (!admit(next, decision)) break;
    waiting_.pop_back();
    take_chunk(next, budget, decision);
  }
}

}  // namespace treadle
