#include "batch/step_input.h"

#include <vector>

#include <gtest/gtest.h>

namespace treadle {
namespace {

using Ints = std::vector<int32_t>;

// Two sequences with their newest token to come: 70 and 3 tokens in 2 and 1 blocks.
struct Decode {
  Decode() {
    a.ids.assign(70, 7);
    a.kv.num_tokens = 69;
    a.kv.blocks = {4, 9};
    a.prompt_len = 60;
    b.ids = {1, 2, 3};
    b.kv.num_tokens = 2;
    b.kv.blocks = {5};
    b.prompt_len = 2;
    decision.scheduled = {{.sequence = &a, .query_len = 1}, {.sequence = &b, .query_len = 1}};
    decision.num_decode = decision.num_tokens = 2;
    input.build(decision);
  }
  Sequence a, b;
  Decision decision;
  StepInput input;
};

TEST(StepInput, HoldsWhatTheDecisionNames) {
  const Decode step;
  EXPECT_EQ(step.input.tokens, (Ints{7, 3}));
  EXPECT_EQ(step.input.positions, (Ints{69, 2}));
  EXPECT_EQ(step.input.rope_len, (Ints{70, 3}));
  EXPECT_EQ(step.input.context_len, (Ints{70, 3}));
  EXPECT_EQ(step.input.block_table_stride, 2);
  EXPECT_EQ(step.input.block_tables, (Ints{4, 9, 5, -1}));
}

// A sequence that ends with the step ahead keeps its place, so that the others keep theirs.
TEST(StepInput, ASequenceThatHasEndedBecomesPadding) {
  Decode step;
  step.decision.scheduled.insert(step.decision.scheduled.begin() + 1,
                                 ScheduledSequence{.sequence = nullptr, .query_len = 1});
  step.decision.num_decode = step.decision.num_tokens = 3;
  step.input.build(step.decision);
  EXPECT_EQ(step.input.tokens, (Ints{7, 0, 3}));
  EXPECT_EQ(step.input.positions, (Ints{69, 0, 2}));
  EXPECT_EQ(step.input.rope_len, (Ints{70, 1, 3}));
  EXPECT_EQ(step.input.context_len, (Ints{70, 0, 3}));
  EXPECT_EQ(step.input.token_sequence, (Ints{0, 1, 2}));
  EXPECT_EQ(step.input.query_begin, (Ints{0, 1, 2, 3}));
  EXPECT_EQ(step.input.block_tables, (Ints{4, 9, -1, -1, 5, -1}));
}

TEST(StepInput, PaddingNamesNoBlocksAndHasNoKeys) {
  Decode step;
  step.input.block_tables = {4, 9, 11, 5, -1, -1};
  step.input.block_table_stride = 3;
  step.input.pad(4, 100);
  EXPECT_EQ(step.input.num_decode, 4);
  EXPECT_EQ(step.input.num_tokens(), 4);
  EXPECT_EQ(step.input.tokens, (Ints{7, 3, 0, 0}));
  EXPECT_EQ(step.input.positions, (Ints{69, 2, 0, 0}));
  EXPECT_EQ(step.input.rope_len, (Ints{70, 3, 1, 1}));
  EXPECT_EQ(step.input.context_len, (Ints{70, 3, 0, 0}));
  EXPECT_EQ(step.input.token_sequence, (Ints{0, 1, 2, 3}));
  EXPECT_EQ(step.input.query_begin, (Ints{0, 1, 2, 3, 4}));
  EXPECT_EQ(step.input.block_table_stride, 4);
  EXPECT_EQ(step.input.block_tables,
            (Ints{4, 9, 11, -1, 5, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1}));
}

TEST(StepInput, TablesAreNeverWiderThanAllowedNorNarrowerThanNeeded) {
  Decode step;
  step.input.block_tables = {4, 9, 11, 5, -1, -1};
  step.input.block_table_stride = 3;
  step.input.pad(2, 3);
  EXPECT_EQ(step.input.block_table_stride, 3);
  EXPECT_EQ(step.input.block_tables, (Ints{4, 9, 11, 5, -1, -1}));
}

}  // namespace
}  // namespace treadle
