#include "attention_decode/launch.cuh"

namespace treadle::cuda::decode {

void launch_int8(ops::DType act, int head_dim, const Params& params, const LaunchPlan& plan,
                 cudaStream_t stream) {
  dispatch<KeysInt8>(act, head_dim, params, plan, stream);
}

}  // namespace treadle::cuda::decode
