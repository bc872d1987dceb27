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
      runner_(parts.ops, parts.pool, parts.decoder, parts.spec.vocab_size) {
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
  if (running_ != nullptr) running_->drop(roster_.ended());
  if (roster_.has_deliveries()) settle();
}

// Counters first: whoever gets a last output finds them up to date.
void Loop::settle() {
  publish({}, {});
  roster_.deliver();
}

void Loop::step() {
  Step* step = std::exchange(running_, nullptr);
  if (step == nullptr) start(*(step = &steps_[0]));
  Step& next = step == &steps_[0] ? steps_[1] : steps_[0];
  const bool queued = start_behind(*step, next);
  runner_.finish(*step);

  emit(*step);
  if (queued) {
    next.drop(roster_.ended());
    advance(next);
    running_ = &next;
  }
  publish(Clock::now() - step_begin_, runner_.take_model_time());
  roster_.deliver();
}

void Loop::start(Step& step) {
  scheduler_.schedule(step.decision);
  if (step.decision.num_tokens == 0) throw Error(ErrorCode::kInternal, "no sequence is runnable");
  for (Sequence* sequence : step.decision.admitted) {
    roster_.admitted(static_cast<Generation&>(*sequence));
  }
  runner_.launch(step);
  advance(step);
}

// Nothing may depend on the tokens that are still to come, but for whether a sequence goes on.
bool Loop::start_behind(const Step& running, Step& next) {
  if (!runner_.overlaps() || !running.decodes()) return false;
  next.rows = running.rows;
  next.decision.clear();
  for (auto& [generation, source, prompt_token, token_index] : next.rows) {
    if (generation != nullptr && !roster_.outlives_next_token(*generation)) generation = nullptr;
    if (generation != nullptr && generation->request.rows.reads_tokens()) return false;
    next.decision.scheduled.push_back({.sequence = generation, .query_len = 1});
  }
  if (!runner_.worth_queuing(next) ||
      !scheduler_.schedule_behind(running.decision, next.decision)) {
    return false;
  }
  runner_.launch_behind(next);
  return true;
}

// The KV of a queued step counts as written: whoever reads it is queued later.
void Loop::advance(const Step& step) {
  for (const auto& [sequence, query_len] : step.decision.scheduled) {
    if (sequence == nullptr) continue;
    auto& generation = static_cast<Generation&>(*sequence);
    kv_.commit(generation.kv, generation.ids, generation.kv.num_tokens + query_len);
    generation.fed = std::max(generation.fed, generation.kv.num_tokens);
    LiveRequest& request = generation.request;
    if (!request.forked && generation.remaining() == 0) roster_.fork(request);
  }
}

void Loop::emit(Step& step) {
  const Clock::time_point now = Clock::now();
  for (size_t i = 0; i < step.rows.size(); ++i) {
    if (step.rows[i].generation == nullptr) continue;  // it has ended meanwhile
    Generation& generation = *step.rows[i].generation;
    StepResult& result = step.results[i];
    if (step.rows[i].prompt_token >= 0) {
      if (result.logprobs) {
        generation.request.prompt_logprobs.push_back(*std::move(result.logprobs));
      }
    } else {
      roster_.emit(generation, result.token, std::move(result.logprobs), now);
    }
  }
}

}  // namespace treadle
