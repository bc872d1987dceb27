// Random 4-bit weights, groups of 128 with zeros, for benchmarks.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/types.h"

namespace treadle {

class RandomInt4 {
 public:
  RandomInt4(int n, int k) : rows_(n), q_(size_t(n) * size_t(k) / 2) {
    uint32_t state = 1;
    const auto random = [&state] {
      state = state * 1664525U + 1013904223U;
      return state >> 16;
    };
    for (uint8_t& byte : q_) byte = static_cast<uint8_t>(random());
    const size_t words = size_t(n) * size_t(k) / kGroup;
    for (size_t i = 0; i < words; ++i) {
      scales_.push_back(static_cast<float>(64 + random() % 64) * 0x1p-14F);  // [0.0039, 0.0078)
      zeros_.push_back(static_cast<uint8_t>(random() % 16));
    }
    groups_ = {.scales = scales_.data(), .zeros = zeros_.data(), .group_size = kGroup};
  }
  RandomInt4(const RandomInt4&) = delete;
  RandomInt4& operator=(const RandomInt4&) = delete;

  /// Borrowed.
  ops::WeightPiece piece() const {
    return {.data = q_.data(), .dtype = ops::DType::kU8, .rows = rows_, .int4 = &groups_};
  }

 private:
  static constexpr int kGroup = 128;
  int rows_;
  std::vector<uint8_t> q_;
  std::vector<float> scales_;
  std::vector<uint8_t> zeros_;
  ops::Int4Groups groups_;
};

}  // namespace treadle
