#include "ops/cpu/sample_kernels.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "ops/cpu/isa.h"
#include "ops/cpu/sample_select.h"

namespace treadle::ops::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// What this processor can run.
std::vector<std::pair<std::string, const SampleKernels*>> all_kernels() {
  std::vector<std::pair<std::string, const SampleKernels*>> list;
  for (const Isa isa : supported_isas()) {
    const SampleKernels* kernels = isa == Isa::kAvx512 ? sample_kernels_avx512()
                                   : isa == Isa::kAvx2 ? sample_kernels_avx2()
                                                       : sample_kernels_plain();
    list.emplace_back(isa_name(isa), kernels);
  }
  return list;
}

std::vector<float> logits(int32_t n, float sigma, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0F, sigma);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(rng);
  return x;
}

TEST(SampleKernels, ScanFindsTheMaximumAndEveryBadValue) {
  for (const auto& [name, k] : all_kernels()) {
    for (int32_t n = 0; n < 150; ++n) {
      std::vector<float> x = logits(n, 3.0F, static_cast<unsigned>(n));
      float max = 0.0F;
      EXPECT_TRUE(k->scan(x.data(), n, &max));
      EXPECT_EQ(max, n == 0 ? -kInf : *std::max_element(x.begin(), x.end())) << name << " " << n;
      for (int32_t at = 0; at < n; ++at) {
        for (const float bad : {kNan, kInf}) {
          const float kept = std::exchange(x[at], bad);
          EXPECT_FALSE(k->scan(x.data(), n, &max)) << name << " " << n << " at " << at;
          x[at] = kept;
        }
      }
      std::fill(x.begin(), x.end(), -kInf);
      EXPECT_TRUE(k->scan(x.data(), n, &max));
      EXPECT_EQ(max, -kInf);
    }
  }
}

TEST(SampleKernels, NextAboveFindsTheFirst) {
  for (const auto& [name, k] : all_kernels()) {
    for (int32_t n = 0; n < 200; n += 3) {
      const std::vector<float> x = logits(n, 1.0F, static_cast<unsigned>(n));
      for (const float threshold : {-kInf, -3.0F, 0.0F, 2.0F, kInf}) {
        for (int32_t begin = 0; begin <= n; ++begin) {
          int32_t expected = begin;
          while (expected < n && !(x[expected] > threshold)) ++expected;
          ASSERT_EQ(k->next_above(x.data(), begin, n, threshold), expected) << name << " " << n;
        }
      }
    }
  }
}

TEST(SampleKernels, WeightsAreExponentials) {
  for (const auto& [name, k] : all_kernels()) {
    for (const int32_t n : {1, 15, 16, 17, 63, 64, 65, 127, 1000, 1023, 1024}) {
      std::vector<float> x = logits(n, 20.0F, static_cast<unsigned>(n));
      if (n > 20) x[5] = -kInf, x[20] = std::numeric_limits<float>::lowest();
      const float max = *std::max_element(x.begin(), x.end());
      for (const float scale : {0.1F, 1.0F, 5.0F}) {
        std::vector<float> w(x.size(), kNan);
        const double sum = k->weights(x.data(), n, max, scale, 0.0F, w.data());
        double expected_sum = 0.0;
        for (size_t i = 0; i < x.size(); ++i) {
          const double y = (double{x[i]} - double{max}) * double{scale};
          const double expected = std::exp(y);
          expected_sum += expected;
          ASSERT_NEAR(w[i], expected, expected * (2e-7 - 2e-7 * std::max(y, -200.0)) + 1.3e-38)
              << name << " exp(" << y << ")";
          if (x[i] == max) {
            ASSERT_EQ(w[i], 1.0F);
          }
        }
        EXPECT_NEAR(sum, expected_sum, 1e-6 * expected_sum);
        EXPECT_EQ(sum, k->weights(x.data(), n, max, scale, 0.0F, nullptr));

        std::vector<float> floored = x;  // in place, and with a floor
        k->weights(floored.data(), n, max, scale, 0.25F, floored.data());
        for (size_t i = 0; i < x.size(); ++i) {
          ASSERT_EQ(floored[i], w[i] >= 0.25F ? w[i] : 0.0F);
        }
      }
    }
  }
}

TEST(SampleKernels, AllBuildsAgreeToTheBit) {
  const std::vector<float> x = logits(1000, 4.0F, 9);
  const float max = *std::max_element(x.begin(), x.end());
  for (int32_t n = 1; n <= 1000; n += 37) {
    std::vector<float> expected(static_cast<size_t>(n));
    const double sum =
        sample_kernels_plain()->weights(x.data(), n, max, 0.7F, 0.01F, expected.data());
    for (const auto& [name, k] : all_kernels()) {
      std::vector<float> w(static_cast<size_t>(n));
      EXPECT_EQ(k->weights(x.data(), n, max, 0.7F, 0.01F, w.data()), sum) << name << " " << n;
      EXPECT_EQ(w, expected) << name << " " << n;
    }
  }
}

std::vector<Candidate> ranked(const std::vector<float>& x) {
  std::vector<Candidate> all;
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] > -kInf) all.push_back({x[i], 0.0F, static_cast<int32_t>(i)});
  }
  std::sort(all.begin(), all.end(), ranks_before);
  return all;
}

TEST(SampleSelect, TopIsTheHeadOfAFullSort) {
  for (const auto& [name, kernels] : all_kernels()) {
    for (int shape = 0; shape < 5; ++shape) {
      std::vector<float> x = logits(3000, 2.0F, 3);
      if (shape == 1) std::sort(x.begin(), x.end());
      if (shape == 2) std::sort(x.rbegin(), x.rend());
      if (shape == 3) std::fill(x.begin(), x.end(), 1.0F);
      if (shape == 4) {
        for (float& v : x) v = std::round(v);
        for (size_t i = 0; i < x.size(); i += 2) x[i] = -kInf;
      }
      const std::vector<Candidate> order = ranked(x);
      for (const int32_t k : {1, 2, 40, 64, 500, 1499, 1501, 2999, 3000}) {
        std::vector<Candidate> got;
        select_top(*kernels, x.data(), 3000, k, got);
        std::sort(got.begin(), got.end(), ranks_before);
        ASSERT_EQ(got.size(), std::min<size_t>(order.size(), static_cast<size_t>(k)));
        for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i].token, order[i].token) << shape;
      }
    }
  }
}

TEST(SampleSelect, MassIsTheShortestHeadThatReachesIt) {
  std::mt19937 rng(8);
  for (const size_t n : {1U, 2U, 31U, 33U, 64U, 1000U, 5000U}) {
    for (int round = 0; round < 50; ++round) {
      std::vector<Candidate> order;
      double total = 0.0;
      for (size_t i = 0; i < n; ++i) {
        // Whole weights add up without rounding, so that exact hits can be tested.
        const float weight = static_cast<float>(1 + rng() % 8);
        // Some rounds have nothing to cut into slices, some numbers that are far too wide apart.
        const float logit = round % 10 == 1 ? 1.0F
                            : round % 10 == 2
                                ? (weight - 4.0F) * 0.25F * std::numeric_limits<float>::max()
                                : weight;
        order.push_back({logit, weight, static_cast<int32_t>(i)});
        total += weight;
      }
      std::sort(order.begin(), order.end(), ranks_before);
      const double mass = round == 0 ? total : std::floor(total * (round / 50.0));
      size_t expected = 0;
      for (double sum = 0.0; expected < n;) {
        sum += order[expected++].weight;
        if (sum >= mass) break;
      }
      std::vector<Candidate> got = order;
      std::shuffle(got.begin(), got.end(), rng);
      ASSERT_EQ(select_mass(got, mass), expected) << n << " " << mass;
      std::sort(got.begin(), got.begin() + static_cast<int>(expected), ranks_before);
      for (size_t i = 0; i < expected; ++i) ASSERT_EQ(got[i].token, order[i].token);
      ASSERT_EQ(select_mass(got, total + 1.0), n);
    }
  }
}

}  // namespace
}  // namespace treadle::ops::cpu
