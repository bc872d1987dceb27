#include "model/model_options.h"

#include <sstream>
#include <string>

#include "treadle/error.h"

namespace treadle::model {
namespace {

constexpr double kMaxFactor = 1e6;

template <typename T>
[[noreturn]] void fail(const char* option, T value, const char* expectation) {
  std::ostringstream message;
  message << option << " is " << value << ": " << expectation;
  throw Error(ErrorCode::kInvalidArgument, message.str());
}

}  // namespace

void apply_options(ModelSpec& spec, double rope_scaling_factor, int32_t use_logn_attn) {
  // Written so that NaN fails too.
  if (rope_scaling_factor != 0.0 &&
      !(rope_scaling_factor >= 1.0 && rope_scaling_factor <= kMaxFactor)) {
    fail("rope_scaling_factor", rope_scaling_factor,
         "must be 0 (as the model says) or from 1 to 1e6");
  }
  if (use_logn_attn < -1 || use_logn_attn > 1) {
    fail("use_logn_attn", use_logn_attn, "must be -1 (as the model says), 0 (off) or 1 (on)");
  }
  if (rope_scaling_factor != 0.0) {
    if (spec.rope.rotary_dim <= 2) {
      fail("rope_scaling_factor", rope_scaling_factor,
           "dynamic NTK needs a model with a rotary dimension above 2");
    }
    spec.rope.kind = RopeKind::kDynamicNtk;
    spec.rope.factor = rope_scaling_factor;
    spec.rope.original_len = spec.max_position_embeddings;
  }
  if (use_logn_attn == 0) spec.logn_len = 0;
  if (use_logn_attn == 1) {
    if (spec.max_position_embeddings < 2) {
      fail("use_logn_attn", use_logn_attn,
           "needs a model whose max_position_embeddings is at least 2");
    }
    // A length of its own that the model brings (Qwen's seq_length) stays in force.
    if (spec.logn_len == 0) spec.logn_len = spec.max_position_embeddings;
  }
}

}  // namespace treadle::model
