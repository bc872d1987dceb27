#include "attention_prefill/mma_launch.cuh"

namespace treadle::cuda::prefill {

void launch_mma_bf16(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  dispatch_mma<__nv_bfloat16>(p, params, stream);
}

}  // namespace treadle::cuda::prefill
