#include "linear/int4_wgmma_launch.cuh"

namespace treadle::cuda::int4::wgmma {

void launch_bf16(const ops::LinearParams& p, const Plan& plan, const stream::Parts& parts,
                 cudaStream_t stream) {
  dispatch<__nv_bfloat16>(p, plan, parts, stream);
}

}  // namespace treadle::cuda::int4::wgmma
