#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "sampler/validate.h"
#include "treadle/error.h"

namespace treadle::sampler {
namespace {

constexpr int32_t kVocab = 100;
constexpr int32_t kMaxBatch = 8;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::string refusal(const std::function<void(SamplingParams&)>& change) {
  SamplingParams params;
  change(params);
  try {
    validate(params, kVocab, kMaxBatch);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
    return e.what();
  }
  return "";
}

TEST(Validate, AcceptsDefaultsAndLimits) {
  using P = SamplingParams;
  const std::vector<std::function<void(P&)>> good = {
      [](P&) {},
      [](P& p) { p.max_new_tokens = p.min_new_tokens = 1; },
      [](P& p) { p.temperature = 0.0F; },
      [](P& p) { p.temperature = 1e30F; },
      [](P& p) { p.top_k = std::numeric_limits<int32_t>::max(); },
      [](P& p) { p.top_p = std::numeric_limits<float>::denorm_min(); },
      [](P& p) { p.min_p = 1.0F; },
      [](P& p) { p.presence_penalty = p.frequency_penalty = -2.0F; },
      [](P& p) {
        p.logit_bias = {{0, -kInf}, {99, 100.0F}};
      },
      [](P& p) {
        p.bad_words = {{0}, {99, 99}};
      },
      [](P& p) {
        p.stop_words = {{5, 5}, {5, 5}};
      },
      [](P& p) {
        p.stop_token_ids = {3, 3, 99};
      },
      [](P& p) { p.logprobs = p.prompt_logprobs = 64; },
      [](P& p) { p.n = kMaxBatch; },
      [](P& p) { p.n = 2, p.temperature = 0.0F; },
  };
  for (size_t i = 0; i < good.size(); ++i) EXPECT_EQ(refusal(good[i]), "") << "case " << i;
}

TEST(Validate, NamesFieldValueAndWhatIsRight) {
  using P = SamplingParams;
  struct Case {
    std::function<void(P&)> change;
    std::vector<std::string> parts;  // of the message
  };
  const std::vector<Case> cases = {
      {[](P& p) { p.max_new_tokens = 0; }, {"max_new_tokens is 0", "at least 1"}},
      {[](P& p) { p.max_new_tokens = -5; }, {"max_new_tokens is -5", "at least 1"}},
      {[](P& p) { p.min_new_tokens = -1; }, {"min_new_tokens is -1", "at least 0"}},
      {[](P& p) { p.max_new_tokens = 10, p.min_new_tokens = 11; },
       {"min_new_tokens is 11", "max_new_tokens", "10"}},
      {[](P& p) { p.temperature = -0.5F; }, {"temperature is -0.5", "at least 0"}},
      {[](P& p) { p.temperature = kNan; }, {"temperature is nan", "finite"}},
      {[](P& p) { p.temperature = kInf; }, {"temperature is inf", "finite"}},
      {[](P& p) { p.top_k = -1; }, {"top_k is -1", "at least 0"}},
      {[](P& p) { p.top_p = 0.0F; }, {"top_p is 0", "above 0", "at most 1"}},
      {[](P& p) { p.top_p = 1.5F; }, {"top_p is 1.5", "at most 1"}},
      {[](P& p) { p.top_p = kNan; }, {"top_p is nan"}},
      {[](P& p) { p.min_p = -0.25F; }, {"min_p is -0.25", "from 0 to 1"}},
      {[](P& p) { p.min_p = 2.0F; }, {"min_p is 2", "from 0 to 1"}},
      {[](P& p) { p.min_p = kNan; }, {"min_p is nan"}},
      {[](P& p) { p.repetition_penalty = 0.0F; }, {"repetition_penalty is 0", "above 0"}},
      {[](P& p) { p.repetition_penalty = -1.0F; }, {"repetition_penalty is -1", "above 0"}},
      {[](P& p) { p.repetition_penalty = kInf; }, {"repetition_penalty is inf", "finite"}},
      {[](P& p) { p.presence_penalty = kNan; }, {"presence_penalty is nan", "finite"}},
      {[](P& p) { p.frequency_penalty = -kInf; }, {"frequency_penalty is -inf", "finite"}},
      {[](P& p) {
         p.logit_bias = {{100, 1.0F}};
       },
       {"logit_bias", "100", "from 0 to 99"}},
      {[](P& p) {
         p.logit_bias = {{-1, 1.0F}};
       },
       {"logit_bias", "-1", "from 0 to 99"}},
      {[](P& p) {
         p.logit_bias = {{4, kNan}};
       },
       {"logit_bias of token 4 is nan", "-inf"}},
      {[](P& p) {
         p.logit_bias = {{4, kInf}};
       },
       {"logit_bias of token 4 is inf", "-inf"}},
      {[](P& p) {
         p.logit_bias = {{4, 1.0F}, {5, 1.0F}, {4, 2.0F}};
       },
       {"logit_bias", "token 4", "more than once"}},
      {[](P& p) {
         p.bad_words = {{1}, {}};
       },
       {"bad_words[1] has 0 tokens", "at least one"}},
      {[](P& p) {
         p.bad_words = {{1, 2, 100}};
       },
       {"bad_words[0][2] is 100", "from 0 to 99"}},
      {[](P& p) { p.stop_words = {{}}; }, {"stop_words[0] has 0 tokens", "at least one"}},
      {[](P& p) {
         p.stop_words = {{7}, {1, -7}};
       },
       {"stop_words[1][1] is -7", "from 0 to 99"}},
      {[](P& p) {
         p.stop_token_ids = {1, 2, 300};
       },
       {"stop_token_ids[2] is 300", "0 to 99"}},
      {[](P& p) { p.logprobs = 65; }, {"logprobs is 65", "from -1 to 64"}},
      {[](P& p) { p.logprobs = -2; }, {"logprobs is -2", "from -1 to 64"}},
      {[](P& p) { p.prompt_logprobs = 65; }, {"prompt_logprobs is 65", "from -1 to 64"}},
      {[](P& p) { p.n = 0; }, {"n is 0", "from 1 to max_batch_size", "8"}},
      {[](P& p) { p.n = 9; }, {"n is 9", "from 1 to max_batch_size", "8"}},
  };
  for (const Case& c : cases) {
    const std::string message = refusal(c.change);
    for (const std::string& part : c.parts) {
      EXPECT_NE(message.find(part), std::string::npos)
          << "'" << message << "' does not say '" << part << "'";
    }
  }
}

TEST(Validate, RefusesToBarTheWholeVocabulary) {
  const auto bar = [](SamplingParams& p, int32_t count) {
    for (int32_t i = 0; i < count; ++i) {
      if (i % 2 == 0) p.bad_words.push_back({i});
      if (i % 3 != 1) p.logit_bias.emplace_back(i, -kInf);
      if (i % 2 == 1 && i % 3 == 1) p.bad_words.push_back({i});
    }
  };
  EXPECT_EQ(refusal([&](SamplingParams& p) { bar(p, kVocab - 1); }), "");
  EXPECT_NE(refusal([&](SamplingParams& p) { bar(p, kVocab); }).find("all 100 tokens"),
            std::string::npos);
}

}  // namespace
}  // namespace treadle::sampler
