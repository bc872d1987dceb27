// A live request and its continuations.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "request/inbox.h"
#include "request/session_table.h"
#include "sampler/row_builder.h"
#include "sampler/stop_rules.h"
#include "scheduler/sequence.h"

namespace treadle {

struct LiveRequest;

/// One of a request's n continuations.
struct Generation : Sequence {
  Generation(LiveRequest& owner, sampler::StopRules rules)
      : request(owner), stop(std::move(rules)) {}

  LiveRequest& request;
  sampler::StopRules stop;
  std::vector<int32_t> pending;  // generated, but held back: they may begin a stop sequence
  std::vector<PositionLogprobs> pending_logprobs;  // of those, when asked for
  std::vector<int32_t> scratch;                    // the row builder's
  int32_t fed = 0;             // most tokens of ids that ever went through the model
  int32_t logprobs_until = 0;  // prompt positions whose logprobs were taken
  Clock::time_point last_token{};
  bool ended = false;
};

struct LiveRequest {
  LiveRequest(Submission from, sampler::RowBuilder builder)
      : submission(std::move(from)), rows(std::move(builder)) {}
  LiveRequest(const LiveRequest&) = delete;
  LiveRequest& operator=(const LiveRequest&) = delete;

  Submission submission;
  sampler::RowBuilder rows;
  std::vector<std::unique_ptr<Generation>> generations;  // [n]; only the first runs before the fork
  bool forked = false;
  int32_t unfinished = 0;
  FinishReason outcome = FinishReason::kNone;     // the gravest of its continuations' so far
  bool in_line = true;                            // holds a place in the waiting line
  int32_t history_len = 0;                        // tokens of the session before this request
  std::vector<PositionLogprobs> prompt_logprobs;  // gathered until the first output
  std::vector<int32_t> kept_ids;  // the session's history once the first continuation has ended
  kv::SessionTail kept_tail;
  std::list<std::unique_ptr<LiveRequest>>::iterator self;  // in the roster

  const Request& request() const { return submission.request; }
  bool wants_prompt_logprobs() const { return request().sampling.prompt_logprobs >= 0; }
};

}  // namespace treadle
