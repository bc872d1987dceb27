// What the CUDA operations share: one device, one stream, the buffers that outlive a call.
#pragma once

#include <cstdint>
#include <string>

#include "common/graph_cache.h"
#include "common/handles.h"
#include "common/staging.h"
#include "linear/matmul.h"
#include "linear/stream_linear.h"
#include "ops/ops.h"
#include "sampling/sample.h"

namespace treadle::cuda {

/// Device memory that grows and is zeroed when it does.
struct Scratch {
  DeviceMemory memory;
  size_t bytes = 0;

  void reserve(size_t wanted, cudaStream_t stream);
};

/// Made with its device current; every call makes it current again, because the loading thread and
/// the engine's thread are not the same.
struct Backend {
  Backend(int32_t device_index, ops::DType act_dtype);
  ~Backend();
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  void make_current() const { check(cudaSetDevice(device), "choose device"); }
  cudaStream_t stream_of(ops::Stream stream) const {
    return stream.handle != nullptr ? static_cast<cudaStream_t>(stream.handle) : own_stream.get();
  }

  size_t scratch_bytes() const {
    return Matmul::kWorkspaceBytes + StreamWorkspace::bytes() + normed.bytes + gathered.bytes +
           gate_up.bytes + dequantised.bytes + decode_scratch.bytes + prefill_scratch.bytes;
  }

  const int32_t device;
  const ops::DType act;
  const std::string name;
  StreamHandle own_stream;
  Matmul matmul;
  StreamWorkspace streaming;
  StagingRing uploads;
  ReturnBuffer downloads;
  BulkUploader weights;
  Scratch normed;          // [tokens][K] the normalised input of a product
  Scratch gathered;        // [tokens][K] the same in the order of a 4-bit weight's columns
  Scratch gate_up;         // [tokens][2 * intermediate] between a product and its gated activation
  Scratch dequantised;     // rows of a 4-bit weight in 16 bits
  Scratch decode_scratch;  // attention_decode's workspace
  Scratch prefill_scratch;
  GraphCache graphs;
};

ops::LinearWeight make_linear(Backend&, const ops::WeightPiece* pieces, int32_t count,
                              int64_t in_features, const float* bias, bool silu_mul);
void linear(Backend&, const ops::LinearParams&, cudaStream_t);
bool attention_makes_qkv(const Backend&, const ops::QkvParams&, const ops::LinearWeight&);
void attention(Backend&, const ops::AttentionParams&, cudaStream_t);

}  // namespace treadle::cuda
