// Which backend an engine runs on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "model/model_spec.h"
#include "ops/cuda.h"
#include "ops/ops.h"
#include "treadle/config.h"

namespace treadle {

/// EngineConfig::device, taken apart.
struct DeviceName {
  enum class Kind : uint8_t { kAuto, kCpu, kGpu };
  Kind kind = Kind::kAuto;
  int32_t gpu = 0;  // N of "cuda:N"
};

/// Throws Error(kInvalidArgument).
DeviceName parse_device(const std::string& text);

struct DeviceChoice {
  std::optional<int32_t> gpu;               // none = the CPU
  ops::DType act_dtype = ops::DType::kF16;  // on the GPU
  std::string note;  // why "auto" leaves a GPU alone that is there; empty when it does not
};

/// Decides among the GPUs of `report`. `model_problem`: why no GPU could run the model, or empty.
/// Throws Error: kInvalidArgument for a number that no GPU has, kUnsupported for "cuda" where it
/// cannot be had, with what is missing.
DeviceChoice choose_device(const EngineConfig& config, ops::DType weights,
                           const std::string& model_problem, const ops::GpuReport& report);

struct ChosenBackend {
  ops::Ops ops;
  std::string note;  // DeviceChoice::note
};

/// The backend that the configuration asks for, for a model of these sizes and this type
/// (spec.weight_dtype). Throws Error.
ChosenBackend select_backend(const EngineConfig& config, const model::ModelSpec& spec);

}  // namespace treadle
