// Stands in for stream_*_f16.cu and stream_*_bf16.cu in a build without Hopper's instruction set.
#include "linear/stream_many_plan.h"
#include "linear/stream_plan.h"
#include "treadle/error.h"

namespace treadle::cuda::stream {
namespace {

[[noreturn]] void missing() {
  throw Error(ErrorCode::kUnsupported, "stream_linear: this build holds no code for sm_90a");
}

}  // namespace

bool built() { return false; }

void launch_f16(const ops::LinearParams& /*p*/, const Plan& /*plan*/, const Parts& /*parts*/,
                cudaStream_t /*stream*/) {
  missing();
}

void launch_bf16(const ops::LinearParams& /*p*/, const Plan& /*plan*/, const Parts& /*parts*/,
                 cudaStream_t /*stream*/) {
  missing();
}

namespace many {

void launch_f16(const ops::LinearParams& /*p*/, const Plan& /*plan*/, const Parts& /*parts*/,
                cudaStream_t /*stream*/) {
  missing();
}

void launch_bf16(const ops::LinearParams& /*p*/, const Plan& /*plan*/, const Parts& /*parts*/,
                 cudaStream_t /*stream*/) {
  missing();
}

}  // namespace many

}  // namespace treadle::cuda::stream
