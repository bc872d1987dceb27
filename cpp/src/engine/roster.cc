#include "engine/roster.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <new>
#include <optional>
#include <utility>

#include "request/output_channel.h"

namespace treadle {
namespace {

double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

Clock::time_point deadline_of(const Submission& submission) {
  const double timeout = submission.request.timeout_s;
  if (timeout <= 0.0) return Clock::time_point::max();
  return submission.submitted +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout));
}

Cause cause_of(const Error& error) {
  return {.reason = FinishReason::kError, .code = error.code(), .message = error.what()};
}

void set_cause(Output& output, const Cause& cause) {
  output.finish_reason = cause.reason;
  output.error = cause.code;
  output.error_message = cause.message;
}

}  // namespace

Roster::Roster(const model::ModelSpec& spec, RosterOptions options, kv::KvCache& kv,
               Scheduler& scheduler, SessionTable& sessions, Inbox& inbox, Stats& stats)
    : spec_(spec),
      options_(options),
      kv_(kv),
      scheduler_(scheduler),
      sessions_(sessions),
      inbox_(inbox),
      stats_(stats) {}

Roster::~Roster() = default;

void Roster::start(Submission submission) {
  ++stats_.requests_submitted;
  next_deadline_ = std::min(next_deadline_, deadline_of(submission));
  Session* session = submission.session.get();
  if (session != nullptr && session->running) {
    session->behind.push_back(std::move(submission));
    ++num_behind_;
  } else {
    begin(std::move(submission));
  }
}

void Roster::begin(Submission submission) {
  // A cancellation from before the request got here has been announced already.
  if (submission.channel->cancelled())
    return refuse(submission, {.reason = FinishReason::kCancelled});
  const Request& request = submission.request;
  try {
    std::vector<int32_t> ids =
        submission.session ? sessions_.begin(*submission.session, request, kv_) : request.input_ids;
    const uint64_t seed = options_.random_seed + submission.order * 0x9E3779B97F4A7C15ULL;
    auto live = std::make_unique<LiveRequest>(
        submission, sampler::RowBuilder(request.sampling, spec_.eos_token_ids, seed));
    const sampler::StopRules stop(
        std::make_shared<sampler::StopTable>(request.sampling, spec_.eos_token_ids));
    for (int32_t i = 0; i < request.sampling.n; ++i) {
      auto generation = std::make_unique<Generation>(*live, stop);
      generation->priority = request.priority;
      generation->order = submission.order;
      generation->index = i;
      live->generations.push_back(std::move(generation));
    }
    enlist(std::move(live), std::move(ids));
  } catch (const Error& error) {
    refuse(submission, cause_of(error));
  } catch (const std::bad_alloc&) {
    refuse(submission, {.reason = FinishReason::kError,
                        .code = ErrorCode::kOutOfMemory,
                        .message = "the host has no memory left for the request"});
  }
}

void Roster::enlist(std::unique_ptr<LiveRequest> request, std::vector<int32_t> ids) {
  LiveRequest& live = *live_.emplace_back(std::move(request));
  live.self = std::prev(live_.end());
  live.history_len = static_cast<int32_t>(ids.size() - live.request().input_ids.size());
  live.unfinished = live.request().sampling.n;

  Generation& first = *live.generations.front();
  first.prompt_len = static_cast<int32_t>(ids.size());
  first.ids = std::move(ids);
  first.slots = live.unfinished;
  first.may_reuse = !live.wants_prompt_logprobs();
  if (options_.reuse_limit > 0) {
    // Within the limit every key is rotated alike; a longer prompt rotates all of its keys anew.
    const bool beyond = first.prompt_len > options_.reuse_limit;
    first.kv.share_limit = beyond ? 0 : options_.reuse_limit;
  }
  if (Session* session = live.submission.session.get(); session != nullptr) {
    session->running = true;
    if (!options_.share_prefixes && !session->has_root) {
      session->root = kv_.new_private_root();
      session->has_root = true;
    }
    first.root = session->root;
    first.tail = session->tail;
  } else if (!options_.share_prefixes) {
    first.root = kv_.new_private_root();
  }
  stats_.prompt_tokens += static_cast<uint64_t>(first.prompt_len);
  scheduler_.enqueue(&first);
}

void Roster::leave_line(LiveRequest& request) {
  if (std::exchange(request.in_line, false)) inbox_.left_line();
}

void Roster::admitted(Generation& generation) { leave_line(generation.request); }

void Roster::count_end(FinishReason reason) {
  switch (reason) {
    case FinishReason::kCancelled:
      ++stats_.requests_cancelled;
      break;
    case FinishReason::kError:
      ++stats_.requests_failed;
      break;
    default:
      ++stats_.requests_finished;
  }
}

// Ends a request that never ran: nothing of its session changes.
void Roster::refuse(Submission& submission, const Cause& cause) {
  inbox_.left_line();
  count_end(cause.reason);
  if (submission.session) {
    sessions_.end(submission.session, submission.channel.get(), {}, {},
                  submission.request.end_session);
  }
  for (int32_t i = 0; i < submission.request.sampling.n; ++i) {
    Output output;
    output.index = i;
    set_cause(output, cause);
    deliveries_.push_back({submission.channel, std::move(output)});
  }
}

void Roster::fork(LiveRequest& request) {
  request.forked = true;
  Generation& first = *request.generations.front();
  for (size_t i = 1; i < request.generations.size(); ++i) {
    Generation& child = *request.generations[i];
    child.ids = first.ids;
    child.prompt_len = first.prompt_len;
    child.root = first.root;
    child.cached_tokens = first.cached_tokens;
    child.computed_tokens = first.computed_tokens;
    child.fed = first.fed;
    kv_.fork(first.kv, child.kv);
    scheduler_.join(&first, &child);
  }
}

// The first `count` pending tokens and what belongs to them.
Output Roster::take_output(Generation& generation, int32_t count) {
  LiveRequest& request = generation.request;
  Output output;
  output.index = generation.index;
  if (count == static_cast<int32_t>(generation.pending.size())) {
    output.token_ids = std::exchange(generation.pending, {});
    output.logprobs = std::exchange(generation.pending_logprobs, {});
  } else {
    const auto take = [count](auto& from, auto& to) {
      if (from.empty()) return;
      to.assign(std::make_move_iterator(from.begin()),
                std::make_move_iterator(from.begin() + count));
      from.erase(from.begin(), from.begin() + count);
    };
    take(generation.pending, output.token_ids);
    take(generation.pending_logprobs, output.logprobs);
  }
  if (generation.index == 0) output.prompt_logprobs = std::exchange(request.prompt_logprobs, {});
  // Continuations that were not forked yet have the first one's prompt.
  output.usage = {.prompt_tokens = request.generations.front()->prompt_len,
                  .cached_tokens = generation.cached_tokens,
                  .computed_tokens = generation.computed_tokens,
                  .output_tokens = generation.generated()};
  return output;
}

void Roster::emit(Generation& generation, int32_t token, std::optional<PositionLogprobs> logprobs,
                  Clock::time_point now) {
  if (token < 0) {
    end(generation,
        {.reason = FinishReason::kError,
         .code = ErrorCode::kInternal,
         .message = "no token could be chosen: every logit is barred or not a finite number"},
        generation.stop.flush());
    return;
  }
  const bool first = generation.generated() == 0;
  const auto since = first ? generation.request.submission.submitted : generation.last_token;
  ++(first ? stats_.ttft_count : stats_.itl_count);
  (first ? stats_.ttft_seconds : stats_.itl_seconds) += seconds(now - since);
  generation.last_token = now;
  ++stats_.output_tokens;

  generation.ids.push_back(token);
  generation.pending.push_back(token);
  if (logprobs) generation.pending_logprobs.push_back(*std::move(logprobs));
  const sampler::StopDecision decision = generation.stop.feed(token);
  if (decision.finish != FinishReason::kNone) {
    end(generation, {.reason = decision.finish}, decision.emit_count);
  } else if (static_cast<int32_t>(generation.ids.size()) >= options_.session_len) {
    end(generation, {.reason = FinishReason::kLength},
        decision.emit_count + generation.stop.flush());
  } else {
    Output output = take_output(generation, decision.emit_count);
    if (output.token_ids.empty() && output.prompt_logprobs.empty()) return;
    generation.request.submission.channel->push(std::move(output));
  }
}

bool Roster::outlives_next_token(const Generation& generation) const {
  return generation.stop.remaining() > 1 &&
         static_cast<int32_t>(generation.ids.size()) + 1 < options_.session_len;
}

void Roster::end(Generation& generation, const Cause& cause, int32_t shown) {
  LiveRequest& request = generation.request;
  Submission& submission = request.submission;
  generation.ended = true;
  ended_.push_back(&generation);
  request.outcome = std::max(request.outcome, cause.reason);
  Output last = take_output(generation, shown);
  set_cause(last, cause);
  deliveries_.push_back({submission.channel, std::move(last)});

  scheduler_.remove(&generation);
  if (submission.session == nullptr && !options_.share_prefixes) {
    kv_.discard(generation.kv);
  } else if (submission.session == nullptr || generation.index != 0) {
    kv_.release(generation.kv);
  } else {
    // The session's history. What was never fed did not happen; what was there before did.
    request.kept_ids = std::move(generation.ids);
    if (static_cast<int32_t>(request.kept_ids.size()) == generation.prompt_len) {
      request.kept_ids.resize(static_cast<size_t>(std::max(generation.fed, request.history_len)));
    }
    // One that was not admitted leaves the session's last block as it was.
    if (generation.kv.blocks.empty()) request.kept_tail = generation.tail;
    kv_.release(generation.kv, request.request().end_session ? nullptr : &request.kept_tail);
  }
  if (--request.unfinished == 0) close(request);
}

void Roster::close(LiveRequest& request) {
  count_end(request.outcome);
  leave_line(request);
  const std::unique_ptr<LiveRequest> hold = std::move(*request.self);
  live_.erase(request.self);
  const std::shared_ptr<Session> session = request.submission.session;
  if (!session) return;
  sessions_.end(session, request.submission.channel.get(), std::move(request.kept_ids),
                request.kept_tail, request.request().end_session);
  session->running = false;
  while (!session->running && !session->behind.empty()) {
    Submission next = std::move(session->behind.front());
    session->behind.pop_front();
    --num_behind_;
    begin(std::move(next));
  }
}

void Roster::end_request(LiveRequest& request, const Cause& cause) {
  // Only the last end() closes the request, so `request` lives through the loop.
  std::vector<Generation*> open;
  for (const auto& generation : request.generations) {
    if (!generation->ended) open.push_back(generation.get());
  }
  for (Generation* generation : open) end(*generation, cause, generation->stop.flush());
}

template <typename CauseOf>
void Roster::end_where(CauseOf cause_of) {
  std::vector<LiveRequest*> due;
  for (const auto& live : live_) {
    if (cause_of(live->submission)) due.push_back(live.get());
    if (!live->submission.session) continue;
    std::erase_if(live->submission.session->behind, [&](Submission& submission) {
      const std::optional<Cause> cause = cause_of(submission);
      if (!cause) return false;
      refuse(submission, *cause);
      --num_behind_;
      return true;
    });
  }
  for (LiveRequest* request : due) end_request(*request, *cause_of(request->submission));
}

void Roster::end_cancelled() {
  end_where([](const Submission& submission) -> std::optional<Cause> {
    if (!submission.channel->cancelled()) return std::nullopt;
    return Cause{.reason = FinishReason::kCancelled};
  });
}

void Roster::end_overdue(Clock::time_point now) {
  if (now < next_deadline_) return;
  next_deadline_ = Clock::time_point::max();
  end_where([&](const Submission& submission) -> std::optional<Cause> {
    const Clock::time_point deadline = deadline_of(submission);
    if (deadline > now) {
      next_deadline_ = std::min(next_deadline_, deadline);
      return std::nullopt;
    }
    return Cause{.reason = FinishReason::kError,
                 .code = ErrorCode::kDeadlineExceeded,
                 .message = "timeout_s = " + std::to_string(submission.request.timeout_s) +
                            " passed before the request was finished"};
  });
}

void Roster::end_all(const Cause& cause) {
  end_where([&](const Submission&) { return std::optional<Cause>(cause); });
}

void Roster::deliver() {
  for (Delivery& delivery : deliveries_) delivery.channel->push(std::move(delivery.output));
  deliveries_.clear();
  ended_.clear();
}

void Roster::free_forgotten_sessions() {
  for (const std::shared_ptr<Session>& session : sessions_.take_forgotten()) {
    kv_.drop_tail(session->tail);
    if (session->has_root) kv_.drop_private(session->ids, session->root);
  }
}

}  // namespace treadle
