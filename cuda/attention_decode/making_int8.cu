#include "attention_decode/keys_int8.cuh"
#include "attention_decode/launch.cuh"
#include "common/dispatch.h"

namespace treadle::cuda::decode {

void launch_making_int8(ops::DType act, const Params& params, const LaunchPlan& plan,
                        cudaStream_t stream) {
  with_half_type(act, [&](auto type) {
    using T = typename decltype(type)::type;
    if (params.heads / params.kv_heads <= 8) {
      run<KeysInt8<T, kMakingInt8Dim, 1>, true>(params, plan, stream);
    } else {
      run<KeysInt8<T, kMakingInt8Dim, 2>, true>(params, plan, stream);
    }
  });
}

}  // namespace treadle::cuda::decode
