#include "attention_prefill/mma_launch.cuh"

namespace treadle::cuda::prefill {

void launch_mma_f16(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  dispatch_mma<__half>(p, params, stream);
}

}  // namespace treadle::cuda::prefill
