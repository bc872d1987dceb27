#include "linear/int4_mma_launch.cuh"

namespace treadle::cuda::int4::mma {

void launch_bf16(const ops::LinearParams& p, const Plan& plan, const stream::Parts& parts,
                 cudaStream_t stream) {
  dispatch<__nv_bfloat16>(p, plan, parts, stream);
}

}  // namespace treadle::cuda::int4::mma
