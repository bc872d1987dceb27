// What is done to a row's logits before anything is chosen: bias, penalties, barred tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/sample_params.h"

namespace treadle::ops::cpu {

/// Applies, in this order, logit_bias, the repetition penalty (logit > 0 ? logit / p : logit * p,
/// once for each distinct token of the history), the presence and frequency penalties (over the
/// output) and the barred tokens. Token ids outside the vocabulary are skipped. A finite logit
/// stays finite unless it is barred; NaN and infinities pass unchanged. `counts` is all zero before
/// and after and grows to the vocabulary.
void adjust_logits(const SampleRow& row, float* logits, int32_t vocab,
                   std::vector<int32_t>& counts);

}  // namespace treadle::ops::cpu
