// Static ranges of K and V: what is read, and what is refused.
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "loader/loader.h"
#include "loader_testing.h"

namespace treadle::loader {
namespace {

using model::ModelSpec;
using testing::expect_error;
using testing::TempDir;
using testing::TestTensor;

class KvRangesTest : public ::testing::Test {
 protected:
  KvRangesTest() {
    spec_.num_layers = 3;
    spec_.num_kv_heads = 2;
    for (int i = 0; i < 3 * 2 * 2; ++i) {
      good_.values.push_back(0.25F + static_cast<float>(i));  // scale
      good_.values.push_back(-static_cast<float>(i));         // zero
    }
  }

  void write(const TestTensor& tensor, const std::string& name = "kv_qparams") {
    dir_.write("kv_qparams.safetensors", testing::safetensors_file({{name, tensor}}));
  }
  void refused(const std::vector<std::string>& parts) {
    std::vector<std::string> all = parts;
    all.emplace_back("kv_qparams.safetensors: ");
    expect_error(ErrorCode::kInvalidModel, all, [&] { load_kv_ranges(dir_.path(), spec_); });
  }

  ModelSpec spec_;
  TestTensor good_{"F32", {3, 2, 2, 2}, {}};
  TempDir dir_;
};

TEST_F(KvRangesTest, AreNotNeeded) { EXPECT_TRUE(load_kv_ranges(dir_.path(), spec_).empty()); }

TEST_F(KvRangesTest, KeepTheirOrder) {
  write(good_);
  const std::vector<ops::KvScale> ranges = load_kv_ranges(dir_.path(), spec_);
  ASSERT_EQ(ranges.size(), 12);
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_EQ(ranges[i].scale, good_.values[2 * i]);
    EXPECT_EQ(ranges[i].zero, good_.values[2 * i + 1]);
  }
}

TEST_F(KvRangesTest, OfAnotherModelAreRefused) {
  TestTensor other = good_;
  other.shape = {2, 3, 2, 2};
  write(other);
  refused({"[2, 3, 2, 2]", "[3, 2, 2, 2]"});
  write(good_, "scales");
  refused({"\"scales\"", "must hold one tensor, \"kv_qparams\""});
  dir_.write("kv_qparams.safetensors",
             testing::safetensors_file({{"kv_qparams", good_}, {"more", good_}}));
  refused({"\"kv_qparams\", \"more\""});
  dir_.write("kv_qparams.safetensors", testing::safetensors_bytes("{}", ""));
  refused({"has no tensor"});
  TestTensor half = good_;
  half.dtype = "F16";
  write(half);
  refused({"F16", "needs F32"});
  dir_.write("kv_qparams.safetensors", "not this");
  refused({});
}

TEST_F(KvRangesTest, ImpossibleValuesAreNamed) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {0.0F, -1.0F, infinity, std::numeric_limits<float>::quiet_NaN()}) {
    TestTensor tensor = good_;
    tensor.values[2 * 7] = bad;  // layer 1, V, head 1
    write(tensor);
    refused({"scale of layer 1, V, head 1 is", "finite and above 0"});
  }
  TestTensor tensor = good_;
  tensor.values[2 * 8 + 1] = -infinity;
  write(tensor);
  refused({"zero of layer 2, K, head 0 is -inf", "must be finite"});
}

}  // namespace
}  // namespace treadle::loader
