#include "attention_prefill/wgmma_launch.cuh"

namespace treadle::cuda::prefill {

void launch_wgmma_bf16(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  dispatch_wgmma<__nv_bfloat16>(p, params, stream);
}

}  // namespace treadle::cuda::prefill
