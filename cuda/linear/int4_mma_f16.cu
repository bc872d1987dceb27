#include "linear/int4_mma_launch.cuh"

namespace treadle::cuda::int4::mma {

void launch_f16(const ops::LinearParams& p, const Plan& plan, const stream::Parts& parts,
                cudaStream_t stream) {
  dispatch<__half>(p, plan, parts, stream);
}

}  // namespace treadle::cuda::int4::mma
