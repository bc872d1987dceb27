// Operations on one token at a time. `act` is the type of the activations: fp16 or bf16.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/ops.h"

namespace treadle::cuda {

/// A tied table is the head's weight as make_linear stores it: [V][K] rows of act.
void embed(const ops::EmbedParams&, ops::DType act, cudaStream_t);

/// out = x / sqrt(mean(x^2) + eps) * weight, row by row. width <= 32768.
struct RmsNormParams {
  const void* x = nullptr;        // [rows][width] of act
  const float* weight = nullptr;  // [width]
  float eps = 0.0F;
  void* out = nullptr;  // [rows][width] of act
  int64_t rows = 0;
  int64_t width = 0;
};
void rms_norm(const RmsNormParams&, ops::DType act, cudaStream_t);

void rope(const ops::RopeParams&, cudaStream_t);

/// head_dim a multiple of 8 up to 256, rotary_dim a multiple of 16, pool of type act or int8. K and
/// V of one (block, layer, head) are both [64][head_dim].
void qkv(const ops::QkvParams&, ops::DType act, cudaStream_t);

/// out[t][i] = silu(gate_up[t][i]) * gate_up[t][inner + i].
void silu_mul(const void* gate_up, void* out, int32_t num_tokens, int64_t inner, ops::DType act,
              cudaStream_t);

void gather(const ops::GatherParams&, ops::DType act, cudaStream_t);

/// Whether this build's kernels run on the current device.
bool has_code_for_device();

void copy_block(const ops::CopyBlockParams&, cudaStream_t);

}  // namespace treadle::cuda
