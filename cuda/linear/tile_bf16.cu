#include <cuda_bf16.h>

#include "linear/tile_launch.cuh"

namespace treadle::cuda::tile {

void launch_bf16(const ops::LinearParams& p, const Plan& plan, cudaStream_t stream) {
  dispatch<__nv_bfloat16>(p, plan, stream);
}

}  // namespace treadle::cuda::tile
