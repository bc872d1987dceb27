// Checks of what a user asks of the sampler, before a request enters the waiting line.
#pragma once

#include <cstdint>

#include "treadle/request.h"

namespace treadle::sampler {

/// Throws Error(kInvalidArgument) that names the field, its value and what would be right, for the
/// first field of `params` that is negative, not a number, out of range, or contradicts another.
/// Token ids must lie in [0, vocab_size); n in [1, max_batch_size].
void validate(const SamplingParams& params, int32_t vocab_size, int32_t max_batch_size);

}  // namespace treadle::sampler
