#include "linear/stream_many_launch.cuh"

namespace treadle::cuda::stream::many {

void launch_f16(const ops::LinearParams& p, const Plan& plan, const Parts& parts,
                cudaStream_t stream) {
  dispatch<__half>(p, plan, parts, stream);
}

}  // namespace treadle::cuda::stream::many
