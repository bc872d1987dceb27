// Packed 4-bit numbers of checkpoints, over sizes that fill lines and threads and sizes that do
// not.
#include <array>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "loader/int4_numbers.h"

namespace treadle::loader {
namespace {

class Matrix {
 public:
  Matrix(int64_t n, int64_t k) : n_(n), k_(k), values_(static_cast<size_t>(n * k)) {
    std::mt19937 random(static_cast<uint32_t>(n * 1000 + k));
    for (uint8_t& value : values_) value = static_cast<uint8_t>(random() & 15U);
  }
  uint32_t at(int64_t row, int64_t column) const {
    return values_[static_cast<size_t>(row * k_ + column)];
  }
  std::vector<uint8_t> pairs() const {
    std::vector<uint8_t> out;
    for (size_t i = 0; i < values_.size(); i += 2) {
      out.push_back(static_cast<uint8_t>(values_[i] | values_[i + 1] << 4));
    }
    return out;
  }
  std::vector<uint32_t> gptq() const {
    std::vector<uint32_t> words;
    for (int64_t column = 0; column < k_; column += 8) {
      for (int64_t row = 0; row < n_; ++row) {
        uint32_t word = 0;
        for (int64_t i = 0; i < 8; ++i) word |= at(row, column + i) << (4 * i);
        words.push_back(word);
      }
    }
    return words;
  }
  std::vector<uint32_t> awq() const {
    constexpr std::array<int64_t, 8> kOrder = {0, 2, 4, 6, 1, 3, 5, 7};
    std::vector<uint32_t> words;
    for (int64_t column = 0; column < k_; ++column) {
      for (int64_t row = 0; row < n_; row += 8) {
        uint32_t word = 0;
        for (size_t i = 0; i < 8; ++i) word |= at(row + kOrder[i], column) << (4 * i);
        words.push_back(word);
      }
    }
    return words;
  }

 private:
  int64_t n_;
  int64_t k_;
  std::vector<uint8_t> values_;
};

TEST(Int4NumbersTest, EveryFormatMeansTheSame) {
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{
           {8, 8}, {8, 64}, {64, 8}, {136, 24}, {128, 128}, {1096, 1032}}) {
    const Matrix matrix(n, k);
    const auto check = [&, n = n, k = k](const auto& numbers, const std::vector<uint32_t>& words) {
      std::vector<std::byte> bytes(words.size() * 4 + 1);  // at an odd address
      std::memcpy(bytes.data() + 1, words.data(), words.size() * 4);
      std::vector<uint8_t> out(static_cast<size_t>(n * k / 2), 0xee);
      numbers(bytes.data() + 1, n, k, out.data());
      EXPECT_EQ(out, matrix.pairs()) << n << " x " << k;
    };
    check(gptq_numbers, matrix.gptq());
    check(awq_numbers, matrix.awq());
  }
}

}  // namespace
}  // namespace treadle::loader
