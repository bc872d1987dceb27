#include "engine/loop.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>
#include <utility>

#include "request/output_channel.h"

namespace treadle {

Loop::Loop(const LoopParts& parts)
    : parts_(parts),
      kv_(parts.pool.num_blocks),
      scheduler_(kv_, parts.limits),
      roster_(parts.spec, parts.roster, kv_, scheduler_, parts.sessions, parts.inbox, counters_),
      sampler_(parts.ops, parts.spec.vocab_size) {
  publish({}, {});
}

void Loop::run() {
  try {
    while (drain()) {
      retire();
      if (!scheduler_.idle()) step();
    }
  } catch (const Error& error) {
    fail(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    fail(ErrorCode::kOutOfMemory, "the host has no memory left");
  } catch (const std::exception& error) {
    fail(ErrorCode::kInternal, error.what());
  } catch (...) {
    fail(ErrorCode::kInternal, "something unknown was thrown");
  }
  end_all();
}

// Whatever still runs or waits ends with the cause why the loop has ended.
void Loop::end_all() {
  for (Submission& late : parts_.inbox.finish()) roster_.start(std::move(late));
  const Health health = this->health();
  const Cause cause = health.ok ? Cause{.reason = FinishReason::kError,
                                        .code = ErrorCode::kShutdown,
                                        .message = "the engine was shut down"}
                                : Cause{.reason = FinishReason::kError,
                                        .code = ErrorCode::kDevice,
                                        .message = health.cause};
  while (!roster_.empty()) roster_.end_all(cause);
  roster_.free_forgotten_sessions();
  settle();
}

// Takes what came in; sleeps while there is nothing to do. False when it is time to stop.
bool Loop::drain() {
  step_begin_ = Clock::now();
  const Clock::time_point expiry = parts_.sessions.expire(step_begin_);
  roster_.free_forgotten_sessions();
  if (roster_.empty()) publish({}, {});
  const bool may_sleep = roster_.empty();
  Inbox::Taken taken = parts_.inbox.take(may_sleep, expiry);
  if (may_sleep) step_begin_ = Clock::now();
  for (Submission& submission : taken.submissions) roster_.start(std::move(submission));
  poked_ = taken.poked;
  if (!taken.closed) return true;
  std::lock_guard lock(published_mutex_);
  return !roster_.empty() && Clock::now() < drain_deadline_;
}

void Loop::retire() {
  if (poked_) roster_.end_cancelled();
  roster_.end_overdue(step_begin_);
  if (roster_.has_deliveries()) settle();
}

// Counters first: whoever gets a last output finds them up to date.
void Loop::settle() {
  publish({}, {});
  roster_.deliver();
}

void Loop::step() {
  scheduler_.schedule(decision_);
  if (decision_.num_tokens == 0) throw Error(ErrorCode::kInternal, "no sequence is runnable");
  for (Sequence* sequence : decision_.admitted) {
    roster_.admitted(static_cast<Generation&>(*sequence));
  }
  input_.build(decision_);
  StepSampler::collect(decision_, rows_);
  for (const StepRow& row : rows_) input_.logit_rows.push_back(row.token_index);

  const Clock::time_point model_begin = Clock::now();
  run_model();
  const Clock::time_point model_end = Clock::now();

  emit();
  publish(Clock::now() - step_begin_, model_end - model_begin);
  roster_.deliver();
}

void Loop::run_model() {
  for (const auto& [src, dst] : decision_.copies) {
    parts_.ops.copy_block(parts_.ops.self, {.kv = parts_.pool, .src = src, .dst = dst}, {});
  }
  sampler_.prepare(rows_);
  parts_.decoder.forward({.tokens = input_.tokens,
                          .positions = input_.positions,
                          .rope_len = input_.rope_len,
                          .token_sequence = input_.token_sequence,
                          .query_begin = input_.query_begin,
                          .context_len = input_.context_len,
                          .block_tables = input_.block_tables,
                          .logit_rows = input_.logit_rows,
                          .block_table_stride = input_.block_table_stride,
                          .num_decode = input_.num_decode,
                          .max_query_len = input_.max_query_len,
                          .max_context_len = input_.max_context_len});
  sampler_.launch(parts_.decoder);
  sampler_.finish(rows_, results_);
}

void Loop::emit() {
  for (const auto& [sequence, query_len] : decision_.scheduled) {
    auto& generation = static_cast<Generation&>(*sequence);
    kv_.commit(generation.kv, generation.ids, generation.kv.num_tokens + query_len);
    generation.fed = std::max(generation.fed, generation.kv.num_tokens);
    LiveRequest& request = generation.request;
    if (!request.forked && generation.remaining() == 0) roster_.fork(request);
  }
  const Clock::time_point now = Clock::now();
  for (size_t i = 0; i < rows_.size(); ++i) {
    Generation& generation = *rows_[i].generation;
    if (rows_[i].prompt_token >= 0) {
      if (results_[i].logprobs) {
        generation.request.prompt_logprobs.push_back(*std::move(results_[i].logprobs));
      }
    } else {
      roster_.emit(generation, results_[i].token, std::move(results_[i].logprobs), now);
    }
  }
}

void Loop::fail(ErrorCode code, const char* what) {
  const std::string cause = std::string(error_code_name(code)) + ": " + what;
  parts_.inbox.close(ErrorCode::kDevice,
                     "the engine has failed and must be loaded again: " + cause);
  std::lock_guard lock(published_mutex_);
  health_ = {.ok = false, .cause = cause};
}

}  // namespace treadle
