#include "attention_decode/keys_16bit.cuh"
#include "attention_decode/launch.cuh"
#include "common/dispatch.h"

namespace treadle::cuda::decode {

void launch_16bit(ops::DType act, int head_dim, const Params& params, const LaunchPlan& plan,
                  cudaStream_t stream) {
  with_half_type(act, [&](auto type) {
    using T = typename decltype(type)::type;
    with_head_dim(head_dim, [&](auto dim) {
      run<Keys16Bit<T, decltype(dim)::value>, false>(params, plan, stream);
    });
  });
}

}  // namespace treadle::cuda::decode
