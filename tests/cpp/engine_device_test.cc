// Which device "auto", "cpu", "cuda" and "cuda:N" mean, by what there is.
#include <string>

#include "attention_decode/params.h"
#include "common/architectures.h"
#include "engine/device.h"
#include "engine_testing.h"

namespace treadle {
namespace {

using testing::expect_error;

const ops::GpuReport kNoDriver{.problem = "no NVIDIA driver is installed"};
const ops::GpuReport kOldDriver{.problem = "the NVIDIA driver serves CUDA 11.4", .hidden = true};
const ops::GpuReport kOneGpu{.gpus = {{"Big GPU", ""}}};
const ops::GpuReport kOldAndNew{
    .gpus = {{"Old GPU", "has compute capability 7.0"}, {"New GPU", ""}}};
const ops::GpuReport kOnlyOld{.gpus = {{"Old GPU", "has compute capability 7.0"}}};

DeviceChoice choose(const std::string& device, const ops::GpuReport& report,
                    const std::string& dtype = "auto", ops::DType weights = ops::DType::kF16,
                    const std::string& model_problem = "") {
  EngineConfig config;
  config.device = device;
  config.dtype = dtype;
  return choose_device(config, weights, model_problem, report);
}

TEST(EngineDevice, NamesAreChecked) {
  EXPECT_EQ(parse_device("auto").kind, DeviceName::Kind::kAuto);
  EXPECT_EQ(parse_device("cpu").kind, DeviceName::Kind::kCpu);
  EXPECT_EQ(parse_device("cuda").kind, DeviceName::Kind::kGpu);
  EXPECT_EQ(parse_device("cuda").gpu, 0);
  EXPECT_EQ(parse_device("cuda:12").gpu, 12);
  for (const char* wrong : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda: 1", "CUDA",
                            "cuda:99999999999", "cpu:0", "auto "}) {
    expect_error(ErrorCode::kInvalidArgument,
                 {"device", std::string("\"") + wrong + "\"", "cuda:N"},
                 [&] { parse_device(wrong); });
  }
}

TEST(EngineDevice, AutoTakesTheFirstUsableGpu) {
  EXPECT_EQ(choose("auto", kOneGpu).gpu, 0);
  EXPECT_EQ(choose("auto", kOneGpu).note, "");
  EXPECT_EQ(choose("auto", kOldAndNew).gpu, 1);
}

TEST(EngineDevice, Int8KvRunsOnAGpu) {
  const EngineConfig config{.quant_policy = 8};
  const DeviceChoice choice = choose_device(config, ops::DType::kF16, "", kOneGpu);
  EXPECT_EQ(choice.gpu, 0);
  EXPECT_EQ(choice.note, "");
}

TEST(EngineDevice, AutoTakesTheCpuAndSaysWhyAGpuIsLeftAlone) {
  EXPECT_FALSE(choose("auto", kNoDriver).gpu);
  EXPECT_EQ(choose("auto", kNoDriver).note, "");  // nothing is left alone
  EXPECT_FALSE(choose("auto", kOldDriver).gpu);
  EXPECT_NE(choose("auto", kOldDriver).note.find("CUDA 11.4"), std::string::npos);
  EXPECT_FALSE(choose("auto", kOnlyOld).gpu);
  EXPECT_NE(choose("auto", kOnlyOld).note.find("Old GPU has compute"), std::string::npos);
  EXPECT_FALSE(choose("auto", kOneGpu, "float32").gpu);
  EXPECT_NE(choose("auto", kOneGpu, "float32").note.find("float32"), std::string::npos);
  const DeviceChoice odd = choose("auto", kOneGpu, "auto", ops::DType::kF16, "no GPU kernel for 7");
  EXPECT_FALSE(odd.gpu);
  EXPECT_NE(odd.note.find("kernel for 7"), std::string::npos);
}

TEST(EngineDevice, TheCpuIsTakenWhereItIsAskedFor) {
  EXPECT_FALSE(choose("cpu", kOneGpu).gpu);
  EXPECT_EQ(choose("cpu", kOneGpu).note, "");
}

TEST(EngineDevice, AGpuThatCannotBeHadIsAnErrorWithTheReason) {
  const auto unsupported = ErrorCode::kUnsupported;
  EXPECT_EQ(choose("cuda", kOneGpu).gpu, 0);
  EXPECT_EQ(choose("cuda:1", kOldAndNew).gpu, 1);
  expect_error(unsupported, {"\"cuda\"", "no NVIDIA driver"}, [] { choose("cuda", kNoDriver); });
  expect_error(unsupported, {"\"cuda:3\"", "CUDA 11.4"}, [] { choose("cuda:3", kOldDriver); });
  expect_error(unsupported, {"Old GPU", "7.0"}, [] { choose("cuda", kOldAndNew); });
  expect_error(unsupported, {"float32", "float16"}, [] { choose("cuda", kOneGpu, "float32"); });
  expect_error(unsupported, {"kernel for 7"},
               [] { choose("cuda", kOneGpu, "auto", ops::DType::kF16, "no GPU kernel for 7"); });
}

TEST(EngineDevice, ANumberThatNoGpuHasIsAMistake) {
  expect_error(ErrorCode::kInvalidArgument, {"cuda:1", "cuda:0 only"},
               [] { choose("cuda:1", kOneGpu); });
  expect_error(ErrorCode::kInvalidArgument, {"cuda:7", "cuda:0 to cuda:1"},
               [] { choose("cuda:7", kOldAndNew); });
}

TEST(EngineDevice, AGpuComputesInHalfPrecision) {
  using ops::DType;
  EXPECT_EQ(choose("cuda", kOneGpu, "auto", DType::kF16).act_dtype, DType::kF16);
  EXPECT_EQ(choose("cuda", kOneGpu, "auto", DType::kBF16).act_dtype, DType::kBF16);
  EXPECT_EQ(choose("cuda", kOneGpu, "auto", DType::kF32).act_dtype, DType::kF16);
  EXPECT_EQ(choose("cuda", kOneGpu, "bfloat16", DType::kF32).act_dtype, DType::kBF16);
  EXPECT_EQ(choose("cuda", kOneGpu, "float16", DType::kBF16).act_dtype, DType::kF16);
}

TEST(EngineDevice, CodeRunsOnWhatItWasCompiledFor) {
  using cuda::code_for;
  constexpr const char* kAll = "80,86,89,90a";
  EXPECT_EQ(code_for(kAll, 75), 0);
  EXPECT_EQ(code_for(kAll, 80), 80);
  EXPECT_EQ(code_for(kAll, 86), 86);
  EXPECT_EQ(code_for(kAll, 87), 86);
  EXPECT_EQ(code_for(kAll, 90), 90);
  EXPECT_EQ(code_for(kAll, 120), 89);  // compiled by the driver, without what 90 adds
  EXPECT_EQ(code_for("80", 90), 80);
  EXPECT_EQ(code_for("90a", 90), 90);
  EXPECT_EQ(code_for("90a", 100), 0);
  EXPECT_EQ(code_for("90a", 89), 0);
  EXPECT_EQ(code_for("80,100", 90), 0);  // only 100 is kept for newer ones
  EXPECT_EQ(code_for("100f", 103), 100);
  EXPECT_EQ(code_for("100f", 120), 0);
  EXPECT_EQ(code_for("", 80), 0);
}

// GPUs of capability 8.6 and 8.9 have 99 KB for a thread block, 8.0 has 163, 9.0 has 227.
TEST(EngineDevice, AttentionFitsTheSharedMemoryOfAllGpusButForTheLargestHeads) {
  using cuda::decode::least_shared_bytes;
  constexpr int kAda = 99 << 10;
  for (const int dim : {64, 80, 96, 128}) EXPECT_LE(least_shared_bytes(16, dim), kAda) << dim;
  EXPECT_LE(least_shared_bytes(8, 256), kAda);
  EXPECT_GT(least_shared_bytes(12, 256), kAda);
  EXPECT_LE(least_shared_bytes(16, 256), 163 << 10);
}

// What this build makes of this machine: every branch leaves an engine that works or a clear error.
TEST(EngineDevice, LoadsOnWhatThereIs) {
  const ops::GpuReport report = ops::cuda_gpus();
  const auto loaded = Engine::load(testing::demo_model(), {.cache_max_entry_count = 32});
  const bool gpu = loaded->info().device != "cpu";
  EXPECT_EQ(loaded->info().dtype, gpu ? "float16" : "float32");
  EXPECT_EQ(testing::run(*loaded, testing::greedy({1, 3, 310}, 3)).tokens.size(), 3U);
  EXPECT_EQ(std::string(backends()).find("cuda") == std::string::npos && gpu, false);
  if (!report.gpus.empty()) return;
  EXPECT_FALSE(gpu);
  expect_error(ErrorCode::kUnsupported, {"\"cuda:0\"", report.problem},
               [] { Engine::load(testing::demo_model(), {.device = "cuda:0"}); });
}

}  // namespace
}  // namespace treadle
