// How a checkpoint's linear layers are quantised.
#pragma once

#include <cstdint>

namespace treadle::model {

enum class QuantMethod : uint8_t {
  kNone,
  kAwq,     // AutoAWQ's "gemm": qweight [K][N / 8]
  kGptq,    // qweight [K / 8][N]
  kPacked,  // compressed-tensors' "pack-quantized": weight_packed [N][K / 8]
};

/// 4-bit weights, w = (q - zero) * scale, with one zero and scale for each group of inputs.
struct QuantSpec {
  QuantMethod method = QuantMethod::kNone;
  int32_t group_size = 0;      // 0 = one group of all inputs
  bool symmetric = false;      // compressed-tensors: zero is 8 everywhere, and not stored
  bool group_index = false;    // GPTQ: g_idx names the group of every input
  bool zero_less_one = false;  // GPTQ, first format: zero - 1 is stored
};

}  // namespace treadle::model
