// The live requests: how they start, fork, get their tokens and end. Engine thread only.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/generation.h"
#include "kv/kv_cache.h"
#include "model/model_spec.h"
#include "request/inbox.h"
#include "request/session_table.h"
#include "scheduler/scheduler.h"
#include "treadle/engine.h"

namespace treadle {

/// Why something ended.
struct Cause {
  FinishReason reason = FinishReason::kNone;
  ErrorCode code = ErrorCode::kOk;
  std::string message;
};

struct RosterOptions {
  int32_t session_len = 0;
  uint64_t random_seed = 0;
  bool share_prefixes = true;
  int32_t reuse_limit = 0;  // dynamic NTK: keys of longer sequences are their own; 0 = no limit
};

class Roster {
 public:
  Roster(const model::ModelSpec& spec, RosterOptions options, kv::KvCache& kv, Scheduler& scheduler,
         SessionTable& sessions, Inbox& inbox, Stats& stats);
  ~Roster();

  /// Takes a request in: it waits behind its session's running one, or in the scheduler's line.
  void start(Submission submission);
  /// A request that the scheduler took out of its line.
  void admitted(Generation& generation);

  /// Ends what was cancelled or is past its deadline.
  void end_cancelled();
  void end_overdue(Clock::time_point now);
  /// Gives back the blocks of sessions that were ended or expired.
  void free_forgotten_sessions();

  /// The prompt is computed: the other continuations share its blocks from here on.
  void fork(LiveRequest& request);
  /// Appends a chosen token (-1: none had a finite logit), applies the stop rules, and tells the
  /// reader. The generation may be gone afterwards.
  void emit(Generation& generation, int32_t token, std::optional<PositionLogprobs> logprobs,
            Clock::time_point now);

  /// False when the length limits end it with its next token.
  bool outlives_next_token(const Generation& generation) const;
  /// Generations that have ended since the last deliver(); they may be gone.
  const std::vector<const Generation*>& ended() const { return ended_; }

  void end_all(const Cause& cause);
  bool empty() const { return live_.empty(); }
  /// Requests that wait behind another one of their session.
  int32_t num_behind() const { return num_behind_; }

  /// Last outputs are kept back until here, so that whoever gets one finds the counters, the
  /// session and the blocks as the request has left them.
  void deliver();
  bool has_deliveries() const { return !deliveries_.empty(); }

 private:
  struct Delivery {
    std::shared_ptr<OutputChannel> channel;
    Output output;
  };

  void begin(Submission submission);
  void enlist(std::unique_ptr<LiveRequest> request, std::vector<int32_t> ids);
  void refuse(Submission& submission, const Cause& cause);
  Output take_output(Generation& generation, int32_t count);
  void end(Generation& generation, const Cause& cause, int32_t shown);
  void end_request(LiveRequest& request, const Cause& cause);
  void close(LiveRequest& request);
  void leave_line(LiveRequest& request);
  void count_end(FinishReason reason);
  template <typename CauseOf>  // std::optional<Cause>(const Submission&)
  void end_where(CauseOf cause_of);

  const model::ModelSpec& spec_;
  const RosterOptions options_;
  kv::KvCache& kv_;
  Scheduler& scheduler_;
  SessionTable& sessions_;
  Inbox& inbox_;
  Stats& stats_;
  std::list<std::unique_ptr<LiveRequest>> live_;
  std::vector<Delivery> deliveries_;
  std::vector<const Generation*> ended_;
  int32_t num_behind_ = 0;
  Clock::time_point next_deadline_ = Clock::time_point::max();
};

}  // namespace treadle
