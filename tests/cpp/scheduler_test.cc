#include "scheduler/scheduler.h"

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace treadle {
namespace {

constexpr int32_t kTokens = ops::kBlockTokens;

// What the engine does around the scheduler, without a model: every finished prompt and every
// decoded token yields one more token until `until` tokens are there. Checks each decision.
class Simulation {
 public:
  struct Job : Sequence {
    int32_t until = 0;
    std::vector<std::unique_ptr<Job>> children;  // continuations, forked when the prompt is done
    bool finished = false;
    bool forked = false;
  };

  Simulation(int32_t num_blocks, SchedulerLimits limits)
      : kv_(num_blocks), scheduler_(kv_, limits), limits_(limits) {}

  Job& add(std::vector<int32_t> prompt, int32_t output, int32_t priority = 0, int32_t n = 1) {
    Job& job = *jobs_.emplace_back(std::make_unique<Job>());
    job.priority = priority;
    job.order = jobs_.size();
    job.prompt_len = static_cast<int32_t>(prompt.size());
    job.ids = std::move(prompt);
    job.until = job.prompt_len + output;
    job.slots = n;
    for (int32_t i = 1; i < n; ++i) {
      Job& child = *job.children.emplace_back(std::make_unique<Job>());
      child.priority = priority;
      child.order = job.order;
      child.index = i;
      child.until = job.until;
      child.prompt_len = job.prompt_len;
    }
    scheduler_.enqueue(&job);
    return job;
  }

  Job& add(int32_t prompt_len, int32_t output, int32_t priority = 0, int32_t n = 1) {
    std::vector<int32_t> prompt(static_cast<size_t>(prompt_len));
    for (int32_t& id : prompt) id = static_cast<int32_t>(random_() % 1000);
    return add(std::move(prompt), output, priority, n);
  }

  void cancel(Job& job) {
    scheduler_.remove(&job);
    kv_.release(job.kv);
    job.finished = true;
    // Continuations that were not forked never come to be.
    if (!job.forked) {
      for (const auto& child : job.children) child->finished = true;
    }
  }

  // Runs one step; false when there was nothing to do.
  bool step() {
    if (scheduler_.idle()) return false;
    const std::vector<Sequence*> before = scheduler_.running();
    scheduler_.schedule(decision_);
    check(before);
    std::vector<Job*> sampled;
    for (const auto& [sequence, query_len] : decision_.scheduled) {
      Job& job = static_cast<Job&>(*sequence);
      for (int32_t p = job.kv.num_tokens; p < job.kv.num_tokens + query_len; ++p) {
        EXPECT_EQ(kv_.pool().references(job.kv.blocks[static_cast<size_t>(p / kTokens)]), 1);
      }
      kv_.commit(job.kv, job.ids, job.kv.num_tokens + query_len);
      if (job.remaining() > 0) continue;
      sampled.push_back(&job);
      if (!job.forked) {
        job.forked = true;
        for (const auto& child : job.children) {
          child->ids = job.ids;
          child->forked = true;
          kv_.fork(job.kv, child->kv);
          scheduler_.join(&job, child.get());
          sampled.push_back(child.get());
        }
      }
    }
    for (Job* job : sampled) {
      job->ids.push_back(static_cast<int32_t>(random_() % 1000));
      if (static_cast<int32_t>(job->ids.size()) < job->until) continue;
      scheduler_.remove(job);
      kv_.release(job->kv);
      job->finished = true;
      finished_.push_back(job);
    }
    EXPECT_STREQ(kv_.pool().check_invariants(), "");
    return true;
  }

  // Steps until all is done; false when that takes suspiciously long.
  bool run(int32_t max_steps) {
    for (int32_t i = 0; i < max_steps; ++i) {
      if (!step()) return true;
      if (::testing::Test::HasFailure()) return false;
    }
    return false;
  }

  kv::KvCache& kv() { return kv_; }
  Scheduler& scheduler() { return scheduler_; }
  const Decision& decision() const { return decision_; }
  const std::vector<Job*>& finished() const { return finished_; }
  const std::vector<std::unique_ptr<Job>>& jobs() const { return jobs_; }
  std::mt19937& random() { return random_; }

 private:
  static bool ranks_before(const Sequence* a, const Sequence* b) { return a->ranks_before(*b); }

  void check(const std::vector<Sequence*>& before) {
    const auto& running = scheduler_.running();
    const auto& waiting = scheduler_.waiting();
    ASSERT_GT(decision_.num_tokens, 0) << "nothing was runnable";
    EXPECT_TRUE(std::ranges::is_sorted(running, ranks_before));
    EXPECT_TRUE(std::is_sorted(waiting.rbegin(), waiting.rend(), ranks_before));

    int32_t slots = 0;
    for (const Sequence* s : running) slots += s->slots;
    EXPECT_LE(slots, limits_.max_batch_size);

    // The one that ranks first keeps its place, and moves on.
    if (!before.empty()) {
      ASSERT_FALSE(running.empty());
      EXPECT_TRUE(running.front() == before.front() ||
                  running.front()->ranks_before(*before.front()));
      const auto is_it = [&](const ScheduledSequence& s) { return s.sequence == before.front(); };
      EXPECT_TRUE(std::ranges::any_of(decision_.scheduled, is_it));
    }
    // Who had to give way ranks after all who did not.
    for (const Sequence* s : before) {
      if (std::ranges::find(running, s) != running.end()) continue;
      for (const Sequence* stayed : before) {
        const bool stays = std::ranges::find(running, stayed) != running.end();
        EXPECT_TRUE(!stays || stayed->ranks_before(*s));
      }
    }
    // Nobody was overtaken: who was admitted ranks before all who wait, unless those were
    // preempted in this very step.
    for (const Sequence* admitted : decision_.admitted) {
      for (const Sequence* left : waiting) {
        const bool preempted = std::ranges::find(before, left) != before.end();
        EXPECT_TRUE(preempted || admitted->ranks_before(*left));
      }
    }
    int32_t tokens = 0;
    int32_t prompt_tokens = 0;
    std::set<const Sequence*> once;
    for (size_t i = 0; i < decision_.scheduled.size(); ++i) {
      const auto& [sequence, query_len] = decision_.scheduled[i];
      EXPECT_TRUE(once.insert(sequence).second);
      EXPECT_NE(std::ranges::find(running, sequence), running.end());
      EXPECT_GE(query_len, 1);
      EXPECT_LE(query_len, sequence->remaining());
      EXPECT_GE(static_cast<int32_t>(sequence->kv.blocks.size()),
                kv::blocks_for(sequence->kv.num_tokens + query_len));
      const bool decodes = static_cast<int32_t>(i) < decision_.num_decode;
      EXPECT_TRUE(!decodes || query_len == 1);
      if (!decodes) prompt_tokens += query_len;
      tokens += query_len;
    }
    EXPECT_EQ(tokens, decision_.num_tokens);
    EXPECT_LE(prompt_tokens, limits_.max_prefill_tokens);
    EXPECT_LE(tokens, limits_.max_prefill_tokens + limits_.max_batch_size);
    for (const Sequence* s : waiting) EXPECT_TRUE(s->kv.blocks.empty());
    EXPECT_EQ(running.size() + waiting.size(), count_unfinished());
  }

  size_t count_unfinished() const {
    size_t count = 0;
    for (const auto& job : jobs_) {
      if (!job->finished) ++count;
      for (const auto& child : job->children) {
        if (job->forked && !child->finished) ++count;
      }
    }
    return count;
  }

  kv::KvCache kv_;
  Scheduler scheduler_;
  const SchedulerLimits limits_;
  Decision decision_;
  std::vector<std::unique_ptr<Job>> jobs_;
  std::vector<Job*> finished_;
  std::mt19937 random_{7};
};

TEST(Scheduler, FirstComeFirstServedWithinAPriority) {
  Simulation sim(64, {.max_batch_size = 1, .max_prefill_tokens = 512});
  auto& a = sim.add(10, 3);
  auto& b = sim.add(10, 3);
  auto& urgent = sim.add(10, 3, 5);
  auto& later = sim.add(10, 3, -1);
  auto& c = sim.add(10, 3);
  ASSERT_TRUE(sim.run(100));
  EXPECT_EQ(sim.finished(), (std::vector<Simulation::Job*>{&urgent, &a, &b, &c, &later}));
}

TEST(Scheduler, NeverRunsMoreThanItsSlots) {
  Simulation sim(64, {.max_batch_size = 3, .max_prefill_tokens = 512});
  for (int i = 0; i < 8; ++i) sim.add(5, 4);
  sim.step();
  EXPECT_EQ(sim.scheduler().running().size(), 3U);
  EXPECT_EQ(sim.scheduler().waiting().size(), 5U);
  ASSERT_TRUE(sim.run(100));
  EXPECT_EQ(sim.finished().size(), 8U);
}

// A request with n continuations takes n places from the start, so that it can always fork.
TEST(Scheduler, ContinuationsHoldTheirPlaces) {
  Simulation sim(64, {.max_batch_size = 4, .max_prefill_tokens = 512});
  sim.add(10, 5, 0, 3);
  sim.add(10, 5, 0, 2);
  sim.step();
  EXPECT_EQ(sim.scheduler().running().size(), 3U);  // the second one needs two places
  EXPECT_EQ(sim.scheduler().waiting().size(), 1U);
  ASSERT_TRUE(sim.run(100));
  EXPECT_EQ(sim.finished().size(), 5U);
}

struct Ahead {
  /// Two sequences decode, with the tokens of `now` still to come.
  explicit Ahead(int32_t num_blocks) : kv(num_blocks), scheduler(kv, {.max_batch_size = 2}) {
    for (Sequence& sequence : running) {
      sequence.order = ++order;
      sequence.ids.assign(kTokens, static_cast<int32_t>(order));
      sequence.prompt_len = kTokens;
      scheduler.enqueue(&sequence);
    }
    scheduler.schedule(now);
    for (Sequence& sequence : running) kv.commit(sequence.kv, sequence.ids, kTokens);
    now.num_decode = now.num_tokens = 2;
    for (ScheduledSequence& scheduled : now.scheduled) scheduled.query_len = 1;
    next.scheduled = now.scheduled;
  }
  ~Ahead() {
    for (Sequence& sequence : running) kv.release(sequence.kv);
  }
  void wait() {
    late.order = ++order;
    late.ids.assign(5, 1);
    scheduler.enqueue(&late);
  }
  kv::KvCache kv;
  Scheduler scheduler;
  uint64_t order = 0;
  std::array<Sequence, 2> running;
  Sequence late;
  Decision now, next;
};

TEST(Scheduler, AStepAheadBringsAnotherTokenOfEach) {
  Ahead ahead(8);
  ASSERT_TRUE(ahead.scheduler.schedule_behind(ahead.now, ahead.next));
  EXPECT_EQ(ahead.next.num_tokens, 2);
  for (const Sequence& sequence : ahead.running) EXPECT_EQ(sequence.kv.blocks.size(), 2U);
}

TEST(Scheduler, AStepAheadKeepsThePlaceOfOneThatEnds) {
  Ahead ahead(3);  // a block for one of them alone
  EXPECT_FALSE(ahead.scheduler.schedule_behind(ahead.now, ahead.next));
  ahead.next.scheduled[0].sequence = nullptr;
  ASSERT_TRUE(ahead.scheduler.schedule_behind(ahead.now, ahead.next));
  EXPECT_EQ(ahead.next.num_decode, 2);
  EXPECT_EQ(ahead.next.num_tokens, 2);
  EXPECT_EQ(ahead.running[0].kv.blocks.size(), 1U);
  EXPECT_EQ(ahead.running[1].kv.blocks.size(), 2U);
}

TEST(Scheduler, NoStepAheadWhereSomebodyCouldBeAdmitted) {
  Ahead ahead(8);
  ahead.wait();
  ASSERT_TRUE(ahead.scheduler.schedule_behind(ahead.now, ahead.next));  // no place is free
  ahead.next.copies.clear();
  ahead.next.scheduled[1].sequence = nullptr;
  EXPECT_FALSE(ahead.scheduler.schedule_behind(ahead.now, ahead.next));
}

TEST(Scheduler, NoStepAheadWhenAnotherSequenceRuns) {
  Ahead ahead(8);
  ahead.scheduler.remove(&ahead.running[1]);
  EXPECT_FALSE(ahead.scheduler.schedule_behind(ahead.now, ahead.next));
  ahead.now.scheduled[1].sequence = nullptr;  // it was seen to have ended
  ahead.next.scheduled[1].sequence = nullptr;
  EXPECT_TRUE(ahead.scheduler.schedule_behind(ahead.now, ahead.next));
}

TEST(Scheduler, LongPromptsRunInChunksBesideDecodes) {
  Simulation sim(64, {.max_batch_size = 8, .max_prefill_tokens = 100});
  sim.add(10, 50);
  sim.step();
  auto& prompt = sim.add(450, 2);
  int32_t steps = 0;
  while (prompt.kv.num_tokens < 450) {
    ASSERT_TRUE(sim.step());
    EXPECT_EQ(sim.decision().num_decode, 1);
    EXPECT_EQ(sim.decision().num_tokens, std::min(100, 1 + 450 - 99 * steps));
    ++steps;
  }
  EXPECT_EQ(steps, 5);
}

// A prompt alone runs in large chunks; beside decodes the chunks are small, but grow with them; a
// burst of prompts runs in large chunks again.
TEST(Scheduler, MixedStepsBoundTheirPromptTokens) {
  Simulation sim(512,
                 {.max_batch_size = 60, .max_prefill_tokens = 1000, .mixed_prefill_tokens = 60});
  for (int i = 0; i < 8; ++i) sim.add(100, 90);
  sim.step();
  EXPECT_EQ(sim.decision().num_tokens, 800);
  auto& prompt = sim.add(200, 2);
  sim.step();
  EXPECT_EQ(sim.decision().num_decode, 8);
  EXPECT_EQ(sim.decision().num_tokens, 8 + 60);
  while (!prompt.finished) ASSERT_TRUE(sim.step());
  for (int i = 0; i < 32; ++i) sim.add(10, 60);
  sim.step();
  EXPECT_EQ(sim.decision().num_decode, 8);
  EXPECT_EQ(sim.decision().num_tokens, 8 + 320);
  sim.add(500, 2);
  sim.step();
  EXPECT_EQ(sim.decision().num_decode, 40);
  EXPECT_EQ(sim.decision().num_tokens, 40 + 80);
  sim.add(1700, 2);  // with what is left of the other one more than two full steps
  sim.step();
  EXPECT_EQ(sim.decision().num_decode, 40);
  EXPECT_EQ(sim.decision().num_tokens, 1000);
  sim.step();
  EXPECT_EQ(sim.decision().num_tokens, 3 * sim.decision().num_decode);
  ASSERT_TRUE(sim.run(1000));
}

// However many sequences decode, prompts get on.
TEST(Scheduler, DecodesDoNotStarvePrompts) {
  Simulation sim(256, {.max_batch_size = 100, .max_prefill_tokens = 80});
  for (int i = 0; i < 99; ++i) sim.add(1, 60);
  for (int i = 0; i < 3; ++i) sim.step();
  ASSERT_GE(sim.scheduler().running().size(), 80U);
  auto& prompt = sim.add(200, 2);
  for (int i = 0; i < 6; ++i) sim.step();
  EXPECT_TRUE(prompt.finished);
}

TEST(Scheduler, PreemptsTheYoungestWhenBlocksRunOut) {
  Simulation sim(4, {.max_batch_size = 4, .max_prefill_tokens = 512});
  auto& oldest = sim.add(kTokens - 2, 100);
  auto& youngest = sim.add(kTokens - 2, 100);
  while (sim.scheduler().num_preemptions() == 0) ASSERT_TRUE(sim.step());
  EXPECT_EQ(sim.scheduler().running(), std::vector<Sequence*>{&oldest});
  EXPECT_EQ(sim.scheduler().waiting(), std::vector<Sequence*>{&youngest});
  EXPECT_EQ(youngest.kv.num_tokens, 0);
  EXPECT_GT(youngest.generated(), 0);  // nothing of it is lost
  ASSERT_TRUE(sim.run(1000));
  EXPECT_EQ(sim.finished(), (std::vector<Simulation::Job*>{&oldest, &youngest}));
}

TEST(Scheduler, CountsWhatIsComputedAndFound) {
  Simulation sim(64, {.max_batch_size = 4, .max_prefill_tokens = 100});
  std::vector<int32_t> prompt(200);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i);
  auto& first = sim.add(prompt, 10);
  ASSERT_TRUE(sim.run(100));
  EXPECT_EQ(first.computed_tokens, 200);
  EXPECT_EQ(first.cached_tokens, 0);
  auto& second = sim.add(prompt, 10);
  ASSERT_TRUE(sim.run(100));
  EXPECT_EQ(second.cached_tokens, 192);
  EXPECT_EQ(second.computed_tokens, 8);
  EXPECT_EQ(sim.scheduler().num_computed_tokens(), 208U);
  EXPECT_EQ(sim.scheduler().num_cached_tokens(), 192U);
  // A chunk that leaves one token: that one is of the prompt, although it runs as a decode token.
  auto& third = sim.add(101, 3);
  ASSERT_TRUE(sim.run(100));
  EXPECT_EQ(third.computed_tokens, 101);
}

TEST(Scheduler, ACancelledSequenceLeavesNothingBehind) {
  Simulation sim(8, {.max_batch_size = 2, .max_prefill_tokens = 64});
  auto& runs = sim.add(200, 10);
  auto& waits = sim.add(200, 10);
  auto& stays = sim.add(100, 10);
  sim.step();
  sim.cancel(runs);
  sim.cancel(waits);
  ASSERT_TRUE(sim.run(100));
  EXPECT_TRUE(stays.finished);
  EXPECT_EQ(sim.kv().pool().num_active(), 0);
}

// Random loads on pools that hardly hold one request: all of them must come to their end, whatever
// comes and goes meanwhile. Simulation::step checks every decision.
TEST(Scheduler, RandomLoadsOnTinyPoolsAlwaysFinish) {
  uint64_t preemptions = 0;
  uint64_t evictions = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    std::mt19937 random(seed);
    const auto pick = [&](int32_t low, int32_t high) {
      return low + static_cast<int32_t>(random() % static_cast<uint32_t>(high - low + 1));
    };
    const int32_t num_blocks = pick(2, 8);
    const SchedulerLimits limits{.max_batch_size = pick(1, 9),
                                 .max_prefill_tokens = pick(1, 150),
                                 .mixed_prefill_tokens = pick(0, 1) * pick(1, 150)};
    Simulation sim(num_blocks, limits);
    sim.random().seed(seed);
    const int32_t room = num_blocks * kTokens;  // session_len
    std::vector<int32_t> common(static_cast<size_t>(room), 5);
    size_t expected = 0;
    for (int32_t i = 0; i < 25; ++i) {
      const int32_t prompt_len = pick(1, room - 2);
      const int32_t output = pick(1, std::min(room - prompt_len, 150));
      const int32_t n = pick(0, 3) == 0 ? pick(1, limits.max_batch_size) : 1;
      auto& job = pick(0, 1) == 0
                      ? sim.add(prompt_len, output, pick(0, 2), n)
                      : sim.add({common.begin(), common.begin() + prompt_len}, output, 0, n);
      expected += static_cast<size_t>(n);
      for (int32_t k = pick(0, 6); k > 0; --k) sim.step();
      if (pick(0, 9) == 0 && !job.finished && !job.forked) {
        sim.cancel(job);
        expected -= static_cast<size_t>(n);
      }
    }
    ASSERT_TRUE(sim.run(200000)) << "seed " << seed;
    EXPECT_EQ(sim.finished().size(), expected) << "seed " << seed;
    EXPECT_EQ(sim.kv().pool().num_active(), 0);
    preemptions += sim.scheduler().num_preemptions();
    evictions += sim.kv().pool().num_evicted();
  }
  EXPECT_GT(preemptions, 100U);
  EXPECT_GT(evictions, 100U);
}

}  // namespace
}  // namespace treadle
