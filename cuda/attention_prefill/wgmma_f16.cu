#include "attention_prefill/wgmma_launch.cuh"

namespace treadle::cuda::prefill {

bool has_wgmma() { return true; }

void launch_wgmma_f16(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  dispatch_wgmma<__half>(p, params, stream);
}

}  // namespace treadle::cuda::prefill
