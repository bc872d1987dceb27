// One step of the batch loop on its way through the model: from the scheduler's decision to the
// chosen tokens.
#pragma once

#include <chrono>
#include <cstdint>
#include <utility>
#include <vector>

#include "batch/step_input.h"
#include "engine/step_sampler.h"
#include "model/decoder.h"
#include "ops/ops.h"
#include "scheduler/scheduler.h"

namespace treadle {

struct Step {
  Decision decision;
  StepInput input;
  std::vector<StepRow> rows;
  std::vector<StepResult> results;
  StepSampler::Arrival arrival;
  uint64_t mark = 0;

  /// True when every sequence brings one token and gets one.
  bool decodes() const;
  /// For a step that decodes: forgets the sequences that have ended since it was launched.
  void drop(const std::vector<const Generation*>& ended);
};

/// Queues steps on the backend, in order, and waits for them.
class StepRunner {
 public:
  StepRunner(const ops::Ops& ops, ops::KvPool pool, model::Decoder& decoder, int32_t vocab_size);

  /// Queues the step of step.decision.
  void launch(Step& step);

  /// Whether a step can be queued while another one runs.
  bool overlaps() const { return ops_.mark != nullptr; }
  /// Whether a step with these rows, some of which may have ended, is about as short as one without
  /// those.
  bool worth_queuing(const Step& next) const;
  /// Queues the step after the last one launched, which decodes. next.decision and next.rows hold
  /// the same sequences in the same places, null where one ends with its token of that step. Their
  /// newest tokens, which the host does not know yet, are read where that step leaves them on the
  /// device.
  void launch_behind(Step& next);

  /// Waits for a launched step and fills its results.
  void finish(Step& step);

  /// Time spent in the backend's functions since the last call.
  std::chrono::nanoseconds take_model_time() { return std::exchange(model_time_, {}); }

 private:
  void run(Step& step, int32_t pending_tokens);

  const ops::Ops& ops_;
  const ops::KvPool pool_;
  model::Decoder& decoder_;
  StepSampler sampler_;
  std::chrono::nanoseconds model_time_{};
};

}  // namespace treadle
