// Weights from the form of ops::Int4Groups to the layout of int4_layout.h and back to 16 bits, on
// the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include "linear/int4_layout.h"

namespace treadle::cuda::int4 {

/// A whole weight as the loader hands it over, its pieces stacked; all in device memory.
struct Unpacked {
  const uint8_t* q = nullptr;      // [n][k / 2], the even column in the low half
  const float* scales = nullptr;   // [n][groups]
  const uint8_t* zeros = nullptr;  // [n][groups]
  const int32_t* order = nullptr;  // [k]: the column of q that becomes the i-th, or null
};

/// Fills layout.bytes() of `packed`.
void pack(const Layout& layout, const Unpacked& from, void* packed, cudaStream_t stream);

/// (q - zero) * scale of tiles [begin, end), rounded once to act: `out` is [rows][k] in the packed
/// order of columns. With silu_mul the gates of all these tiles come first, then their ups.
void dequantise(const Layout& layout, const void* packed, int begin, int end, ops::DType act,
                void* out, cudaStream_t stream);

/// out[t][i] = x[t][order[i]] of 16-bit elements.
void gather_columns(const void* x, const int32_t* order, void* out, int32_t num_tokens, int64_t k,
                    cudaStream_t stream);

}  // namespace treadle::cuda::int4
