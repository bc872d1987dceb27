#include "linear/stream_many_launch.cuh"

namespace treadle::cuda::stream::many {

void launch_bf16(const ops::LinearParams& p, const Plan& plan, const Parts& parts,
                 cudaStream_t stream) {
  dispatch<__nv_bfloat16>(p, plan, parts, stream);
}

}  // namespace treadle::cuda::stream::many
