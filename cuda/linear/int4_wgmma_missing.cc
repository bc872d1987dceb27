// Stands in for int4_wgmma_f16.cu and int4_wgmma_bf16.cu in a build without Hopper's instruction
// set.
#include "linear/int4_wgmma_plan.h"
#include "treadle/error.h"

namespace treadle::cuda::int4::wgmma {
namespace {

[[noreturn]] void missing() {
  throw Error(ErrorCode::kUnsupported, "int4_wgmma: this build holds no code for sm_90a");
}

}  // namespace

bool built() { return false; }

void launch_f16(const ops::LinearParams& /*p*/, const Plan& /*plan*/,
                const stream::Parts& /*parts*/, cudaStream_t /*stream*/) {
  missing();
}

void launch_bf16(const ops::LinearParams& /*p*/, const Plan& /*plan*/,
                 const stream::Parts& /*parts*/, cudaStream_t /*stream*/) {
  missing();
}

}  // namespace treadle::cuda::int4::wgmma
