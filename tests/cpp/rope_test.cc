// Rotary frequencies against values that Hugging Face transformers computes (5.23, float32).
#include "model/rope.h"

#include <array>
#include <ostream>
#include <string>

#include <gtest/gtest.h>

#include "loader/config.h"

namespace treadle::model {
namespace {

constexpr std::array<size_t, 6> kIndices = {0, 7, 12, 16, 20, 31};

struct Case {
  const char* name;
  const char* rope;                // of config.json, besides rope_theta 10000 and 2048 positions
  std::array<double, 6> inv_freq;  // at kIndices
  double attention_factor = 1.0;
};

// GoogleTest finds this by its name; the bytes it would print instead are no help.
void PrintTo(const Case& rope_case, std::ostream* out) { *out << rope_case.name; }

RopeSpec rope_of(const std::string& rope) {
  return loader::parse_spec(R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 256,
      "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 64,
      "vocab_size": 32, "max_position_embeddings": 2048, "rope_theta": 10000.0)" +
                                rope + "}",
                            {})
      .rope;
}

class RopeCase : public ::testing::TestWithParam<Case> {};

TEST_P(RopeCase, EqualsTransformers) {
  const RopeTable table = make_rope_table(rope_of(GetParam().rope));
  ASSERT_EQ(table.inv_freq.size(), 32U);
  for (size_t i = 0; i < kIndices.size(); ++i) {
    const double expected = GetParam().inv_freq[i];
    EXPECT_NEAR(table.inv_freq[kIndices[i]], expected, 4e-7 * expected) << kIndices[i];
  }
  EXPECT_NEAR(table.attention_factor, GetParam().attention_factor, 1e-6);
  EXPECT_EQ(table.dynamic_base, 0.0);
}

constexpr const char* kYarn = R"(, "rope_scaling": {"rope_type": "yarn", "factor": 4.0)";
const std::string kYarnMscale = std::string(kYarn) + R"(, "mscale": 0.707, "mscale_all_dim": 1.3})";
const std::string kYarnFactor = std::string(kYarn) + R"(, "attention_factor": 1.25})";
const std::string kYarnSmooth = std::string(kYarn) + R"(, "truncate": false})";
const std::string kYarnBeta = std::string(kYarn) + R"(, "beta_fast": 16, "beta_slow": 2})";
const std::string kYarnShort = std::string(kYarn) + R"(, "original_max_position_embeddings": 512})";
const std::string kYarnPlain = std::string(kYarn) + "}";

INSTANTIATE_TEST_SUITE_P(
    Kinds, RopeCase,
    ::testing::Values(
        Case{"default",
             "",
             {1.0, 0.13335215, 0.031622779, 0.0099999998, 0.0031622779, 0.00013335215}},
        Case{"linear",
             R"(, "rope_scaling": {"type": "linear", "factor": 2.5})",
             {0.40000001, 0.05334086, 0.012649111, 0.0039999997, 0.0012649111, 5.334086e-05}},
        Case{"llama3",
             R"(, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
             "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192})",
             {1.0, 0.13335215, 0.031622779, 0.0099999998, 0.0031622779, 1.6669019e-05}},
        Case{"llama3_short",
             R"(, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
             "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 1024})",
             {1.0, 0.13335215, 0.031622779, 0.0023460565, 9.8821183e-05, 4.1672547e-06}},
        Case{"yarn",
             kYarnPlain.c_str(),
             {1.0, 0.13335215, 0.024325214, 0.0053846152, 0.00097300857, 3.3338038e-05},
             1.138629436111989},
        Case{"yarn_mscale",
             kYarnMscale.c_str(),
             {1.0, 0.13335215, 0.024325214, 0.0053846152, 0.00097300857, 3.3338038e-05},
             0.9303457183160174},
        Case{"yarn_attention_factor",
             kYarnFactor.c_str(),
             {1.0, 0.13335215, 0.024325214, 0.0053846152, 0.00097300857, 3.3338038e-05},
             1.25},
        Case{"yarn_smooth",
             kYarnSmooth.c_str(),
             {1.0, 0.13335215, 0.023870196, 0.0050569717, 0.00081129046, 3.3338038e-05},
             1.138629436111989},
        Case{"yarn_beta",
             kYarnBeta.c_str(),
             {1.0, 0.13335215, 0.025693506, 0.004375, 0.00079056947, 3.3338038e-05},
             1.138629436111989},
        Case{"yarn_original",
             kYarnShort.c_str(),
             {1.0, 0.10257857, 0.015203258, 0.0024999999, 0.00079056947, 3.3338038e-05},
             1.138629436111989}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(Rope, DynamicNtkKeepsThePlainFrequenciesAndTellsTheBase) {
  const RopeSpec spec = rope_of(R"(, "rope_scaling": {"type": "dynamic", "factor": 3.0})");
  const RopeTable table = make_rope_table(spec);
  EXPECT_NEAR(table.inv_freq[31], 0.00013335215, 1e-10);
  EXPECT_EQ(table.dynamic_base, 10000.0);
  EXPECT_EQ(table.dynamic_factor, 3.0);
  EXPECT_EQ(table.original_len, 2048);
  EXPECT_EQ(dynamic_ntk_base(spec, 1), 10000.0);
  EXPECT_EQ(dynamic_ntk_base(spec, 2048), 10000.0);
  EXPECT_GT(dynamic_ntk_base(spec, 2049), 10000.0);
  // 10000 * (3 * 4096 / 2048 - 2)^(64 / 62)
  EXPECT_NEAR(dynamic_ntk_base(spec, 4096), 41829.366, 0.01);
}

TEST(Rope, PartialRotationHasFewerFrequencies) {
  const RopeTable table = make_rope_table(rope_of(R"(, "partial_rotary_factor": 0.5)"));
  ASSERT_EQ(table.inv_freq.size(), 16U);
  EXPECT_NEAR(table.inv_freq[8], 0.01F, 1e-8);  // 10000^(-16/32)
}

}  // namespace
}  // namespace treadle::model
