#include "attention_decode/launch.cuh"

namespace treadle::cuda::decode {

void launch_16bit(ops::DType act, int head_dim, const Params& params, const LaunchPlan& plan,
                  cudaStream_t stream) {
  dispatch<Keys16Bit>(act, head_dim, params, plan, stream);
}

}  // namespace treadle::cuda::decode
