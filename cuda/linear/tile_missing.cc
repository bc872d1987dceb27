// Stands in for tile_f16.cu and tile_bf16.cu in a build without Hopper's instruction set.
#include "linear/tile_plan.h"
#include "treadle/error.h"

namespace treadle::cuda::tile {
namespace {

[[noreturn]] void missing() {
  throw Error(ErrorCode::kUnsupported, "tile_linear: this build holds no code for sm_90a");
}

}  // namespace

bool built() { return false; }

void launch_f16(const ops::LinearParams& /*p*/, const Plan& /*plan*/, cudaStream_t /*stream*/) {
  missing();
}

void launch_bf16(const ops::LinearParams& /*p*/, const Plan& /*plan*/, cudaStream_t /*stream*/) {
  missing();
}

}  // namespace treadle::cuda::tile
