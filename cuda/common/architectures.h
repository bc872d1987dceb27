// Which GPUs the code of a build runs on.
#pragma once

#include <algorithm>
#include <string_view>

namespace treadle::cuda {

/// Compute capability (10 * major + minor) that the code is compiled for which a GPU of
/// `capability` runs, of a build for `architectures`; 0 where none runs. The list is
/// TREADLE_CUDA_ARCHS with commas, "80,86,90a". Code for 86 runs on 8.6 and later 8.x, code for 90a
/// on 9.0 alone. The newest entry without a letter is kept in a form that the driver compiles for
/// anything newer, too.
constexpr int code_for(std::string_view architectures, int capability) {
  int newest = 0;  // entry without a letter
  int best = 0;
  while (!architectures.empty()) {
    const std::string_view entry = architectures.substr(0, architectures.find(','));
    architectures.remove_prefix(std::min(entry.size() + 1, architectures.size()));
    int number = 0;
    for (const char c : entry) number = c >= '0' && c <= '9' ? 10 * number + (c - '0') : number;
    const bool same_major = number / 10 == capability / 10 && number <= capability;
    const bool runs = entry.ends_with('a') ? number == capability : same_major;
    if (runs) best = std::max(best, number);
    if (!entry.ends_with('a') && !entry.ends_with('f')) newest = std::max(newest, number);
  }
  return best == 0 && newest <= capability ? newest : best;
}

}  // namespace treadle::cuda
