#include <cuda_fp16.h>

#include "linear/tile_launch.cuh"

namespace treadle::cuda::tile {

bool built() { return true; }

void launch_f16(const ops::LinearParams& p, const Plan& plan, cudaStream_t stream) {
  dispatch<__half>(p, plan, stream);
}

}  // namespace treadle::cuda::tile
