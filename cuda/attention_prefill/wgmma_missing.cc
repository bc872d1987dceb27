// Stands in for wgmma_*.cu in a build without Hopper's instruction set.
#include "attention_prefill/launches.h"
#include "treadle/error.h"

namespace treadle::cuda::prefill {
namespace {

[[noreturn]] void missing() {
  throw Error(ErrorCode::kUnsupported, "attention_prefill: this build holds no code for sm_90a");
}

}  // namespace

bool has_wgmma() { return false; }

void launch_wgmma_f16(const ops::AttentionParams& /*p*/, const Params& /*params*/,
                      cudaStream_t /*stream*/) {
  missing();
}

void launch_wgmma_bf16(const ops::AttentionParams& /*p*/, const Params& /*params*/,
                       cudaStream_t /*stream*/) {
  missing();
}

}  // namespace treadle::cuda::prefill
