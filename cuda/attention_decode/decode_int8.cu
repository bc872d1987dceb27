#include "attention_decode/keys_int8.cuh"
#include "attention_decode/launch.cuh"
#include "common/dispatch.h"

namespace treadle::cuda::decode {

void launch_int8(ops::DType act, int head_dim, const Params& params, const LaunchPlan& plan,
                 cudaStream_t stream) {
  with_half_type(act, [&](auto type) {
    using T = typename decltype(type)::type;
    with_head_dim(head_dim, [&](auto dim) {
      constexpr int kDim = decltype(dim)::value;
      if (params.heads / params.kv_heads <= 8) {
        run<KeysInt8<T, kDim, 1>, false>(params, plan, stream);
      } else {
        run<KeysInt8<T, kDim, 2>, false>(params, plan, stream);
      }
    });
  });
}

}  // namespace treadle::cuda::decode
