#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "sampler/pack_rows.h"

namespace treadle::sampler {
namespace {

using Tokens = std::vector<int32_t>;

// A block packed for one address and read at that address.
class Packed {
 public:
  explicit Packed(std::span<const ops::SampleRow> rows) : block_(packed_bytes(rows) / 16) {
    std::vector<char> host(packed_bytes(rows));
    pack_rows(rows, host.data(), block_.data());
    std::memcpy(block_.data(), host.data(), host.size());
  }
  const ops::SampleRow& row(size_t i) const {
    return reinterpret_cast<const ops::SampleRow*>(block_.data())[i];
  }
  bool holds(const void* p, size_t bytes) const {
    const auto* begin = reinterpret_cast<const char*>(block_.data());
    const auto* at = static_cast<const char*>(p);
    return at >= begin && at + bytes <= begin + block_.size() * sizeof(Unit);
  }

 private:
  struct alignas(16) Unit {
    char bytes[16];
  };
  std::vector<Unit> block_;
};

TEST(PackRows, EverythingLiesInTheBlock) {
  const Tokens history = {5, 6, 7};
  const Tokens barred = {9};
  const std::vector<ops::LogitBias> bias = {{1, 2.0F}, {3, -4.0F}};
  std::vector<ops::SampleRow> rows(3);
  rows[0].seed = 10;
  rows[1] = {.repetition_penalty = 1.5F,
             .history = history.data(),
             .history_len = 3,
             .output_begin = 2,
             .bias = bias.data(),
             .bias_count = 2};
  rows[2].barred = barred.data();
  rows[2].barred_count = 1;
  const Packed packed(rows);
  EXPECT_EQ(packed.row(0).seed, 10U);
  const ops::SampleRow& one = packed.row(1);
  ASSERT_TRUE(packed.holds(one.history, sizeof(int32_t) * 3));
  EXPECT_EQ(Tokens(one.history, one.history + one.history_len), history);
  EXPECT_EQ(one.output_begin, 2);
  ASSERT_TRUE(packed.holds(one.bias, sizeof(ops::LogitBias) * 2));
  EXPECT_EQ(one.bias[1].token, 3);
  EXPECT_EQ(one.bias[1].bias, -4.0F);
  const ops::SampleRow& two = packed.row(2);
  ASSERT_TRUE(packed.holds(two.barred, sizeof(int32_t)));
  EXPECT_EQ(Tokens(two.barred, two.barred + two.barred_count), barred);
}

TEST(PackRows, LeavesOutHistoryThatNoPenaltyReads) {
  const Tokens history = {5, 6, 7, 8};
  ops::SampleRow row{.history = history.data(), .history_len = 4, .output_begin = 1};
  EXPECT_EQ(Packed({&row, 1}).row(0).history_len, 0);

  row.presence_penalty = 0.5F;
  const Packed output({&row, 1});
  EXPECT_EQ(Tokens(output.row(0).history, output.row(0).history + output.row(0).history_len),
            (Tokens{6, 7, 8}));
  EXPECT_EQ(output.row(0).output_begin, 0);

  row.forced_token = 3;
  EXPECT_EQ(Packed({&row, 1}).row(0).history_len, 0);
  EXPECT_EQ(packed_bytes({&row, 1}), (sizeof row + 15) / 16 * 16);
}

}  // namespace
}  // namespace treadle::sampler
