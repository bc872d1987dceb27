// The one file that knows which backends this build holds: without CUDA it stands in for cuda/.
#include "engine/device.h"

#include <charconv>
#include <filesystem>
#include <system_error>

#include "treadle/error.h"
#include "treadle/version.h"

#if !defined(TREADLE_HAS_CUDA)

namespace treadle::ops {

GpuReport cuda_gpus(const GpuModel& /*model*/) {
  std::error_code ignored;
  // The driver's own node: there whenever one of its GPUs can be reached.
  return {.problem = "this build has no CUDA backend (install Treadle with nvcc on PATH)",
          .hidden = std::filesystem::exists("/dev/nvidiactl", ignored)};
}

std::string cuda_cannot_run(const GpuModel& /*model*/) { return {}; }

std::string cuda_library() { return {}; }

Ops cuda_ops(int32_t /*device*/, DType /*act_dtype*/) {
  throw Error(ErrorCode::kUnsupported, cuda_gpus().problem);
}

}  // namespace treadle::ops

#endif

namespace treadle {
namespace {

[[noreturn]] void unsupported(const EngineConfig& config, const std::string& why) {
  throw Error(ErrorCode::kUnsupported, "device = \"" + config.device + "\": " + why);
}

/// The type a GPU computes in. float32 weights are rounded to float16, whose 11 bits keep more of
/// them than bfloat16's 8.
ops::DType gpu_dtype(const EngineConfig& config, ops::DType weights) {
  const bool brain =
      config.dtype == "bfloat16" || (config.dtype == "auto" && weights == ops::DType::kBF16);
  return brain ? ops::DType::kBF16 : ops::DType::kF16;
}

/// First GPU that this build can run on. Where there is none, `problem` says why not.
int32_t first_usable(const ops::GpuReport& report, std::string& problem) {
  for (size_t i = 0; i < report.gpus.size(); ++i) {
    if (report.gpus[i].problem.empty()) return static_cast<int32_t>(i);
  }
  problem = report.problem;
  if (!report.gpus.empty()) problem = report.gpus[0].name + " " + report.gpus[0].problem;
  return -1;
}

}  // namespace

const char* backends() noexcept {
#if defined(TREADLE_HAS_CUDA)
  return "cpu,cuda";
#else
  return "cpu";
#endif
}

DeviceName parse_device(const std::string& text) {
  using Kind = DeviceName::Kind;
  if (text == "auto") return {Kind::kAuto};
  if (text == "cpu") return {Kind::kCpu};
  if (text == "cuda") return {Kind::kGpu};
  int32_t number = -1;
  if (text.starts_with("cuda:")) {
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + 5, end, number);
    if (error != std::errc() || stop != end) number = -1;
  }
  if (number < 0) {
    throw Error(ErrorCode::kInvalidArgument,
                "device = \"" + text + "\" must be \"auto\", \"cpu\", \"cuda\" or \"cuda:N\"");
  }
  return {Kind::kGpu, number};
}

DeviceChoice choose_device(const EngineConfig& config, ops::DType weights,
                           const std::string& model_problem, const ops::GpuReport& report) {
  const DeviceName name = parse_device(config.device);
  if (name.kind == DeviceName::Kind::kCpu) return {};
  const bool automatic = name.kind == DeviceName::Kind::kAuto;
  std::string problem;
  int32_t gpu = name.gpu;
  if (automatic) {
    gpu = first_usable(report, problem);
  } else if (report.gpus.empty()) {
    problem = report.problem;
  } else if (gpu >= static_cast<int32_t>(report.gpus.size())) {
    const std::string last = std::to_string(report.gpus.size() - 1);
    throw Error(ErrorCode::kInvalidArgument, "device = \"" + config.device +
                                                 "\": this machine has cuda:0" +
                                                 (last == "0" ? " only" : " to cuda:" + last));
  } else if (const ops::Gpu& chosen = report.gpus[static_cast<size_t>(gpu)];
             !chosen.problem.empty()) {
    problem = chosen.name + " " + chosen.problem;
  }
  if (problem.empty() && config.dtype == "float32") {
    problem = "a GPU computes in float16 or bfloat16, and dtype is \"float32\"";
  }
  if (problem.empty()) problem = model_problem;
  if (problem.empty()) return {.gpu = gpu, .act_dtype = gpu_dtype(config, weights)};
  if (!automatic) unsupported(config, problem);
  const bool there = !report.gpus.empty() || report.hidden;
  return {.note = there ? "the GPU is not used: " + problem : ""};
}

ChosenBackend select_backend(const EngineConfig& config, const model::ModelSpec& spec) {
  if (parse_device(config.device).kind == DeviceName::Kind::kCpu) {
    return {ops::cpu_ops(config.num_threads), ""};
  }
  const ops::GpuModel model{.heads = spec.num_heads,
                            .kv_heads = spec.num_kv_heads,
                            .head_dim = spec.head_dim,
                            .rotary_dim = spec.rope.rotary_dim,
                            .hidden = spec.hidden_size,
                            .intermediate = spec.intermediate_size};
  DeviceChoice choice =
      choose_device(config, spec.weight_dtype, ops::cuda_cannot_run(model), ops::cuda_gpus(model));
  if (choice.gpu) {
    try {
      return {ops::cuda_ops(*choice.gpu, choice.act_dtype), choice.note};
    } catch (const Error& error) {
      if (config.device != "auto") throw;
      choice.note = std::string("the GPU is not used: ") + error.what();
    }
  }
  return {ops::cpu_ops(config.num_threads), choice.note};
}

}  // namespace treadle
