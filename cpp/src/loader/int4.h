// 4-bit linear layers of a checkpoint: the tensors they are made of, and one form for all formats.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "loader/checkpoint.h"
#include "loader/tensor_names.h"

namespace treadle::loader {

/// A layer as ops::Int4Groups describes it.
struct Int4Weight {
  std::vector<uint8_t> q;         // [out][in / 2]
  std::vector<float> scales;      // [out][groups]
  std::vector<uint8_t> zeros;     // [out][groups]
  std::vector<int32_t> group_of;  // [in], or empty where groups are runs of inputs
  int64_t group_size = 0;
};

/// Makes the layers that the checkpoint does not store whole quantised ones. Throws
/// Error(kInvalidModel) for a layer whose sizes cannot be.
void mark_quantized(const Checkpoint& checkpoint, const model::ModelSpec& spec, ModelNames& names);

/// The tensors of a quantised layer, without its bias.
std::vector<ExpectedTensor> int4_tensors(const LinearName& linear);

/// Reads a quantised layer whose tensors have been verified. Throws Error(kInvalidModel) that names
/// the tensor with a value that cannot be.
Int4Weight read_int4(const Checkpoint& checkpoint, const LinearName& linear);

}  // namespace treadle::loader
