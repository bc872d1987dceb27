// Which GPUs the code of a build runs on.
#pragma once

#include <algorithm>
#include <string_view>

namespace treadle::cuda {

/// Whether a build for `architectures` runs on a GPU of `capability` (10 * major + minor). The list
/// is TREADLE_CUDA_ARCHS with commas, "80,86,90a". Code for 86 runs on 8.6 and later 8.x, code for
/// 90a on 9.0 alone. The newest entry without a letter is kept in a form that the driver compiles
/// for anything newer, too.
constexpr bool code_runs_on(std::string_view architectures, int capability) {
  int newest = 1000;  // entry without a letter
  bool runs = false;
  while (!architectures.empty()) {
    const std::string_view entry = architectures.substr(0, architectures.find(','));
    architectures.remove_prefix(std::min(entry.size() + 1, architectures.size()));
    int number = 0;
    for (const char c : entry) number = c >= '0' && c <= '9' ? 10 * number + (c - '0') : number;
    const bool same_major = number / 10 == capability / 10;
    if (entry.ends_with('a')) {
      runs |= number == capability;
    } else if (entry.ends_with('f')) {
      runs |= same_major && number <= capability;
    } else {
      runs |= same_major && number <= capability;
      newest = newest == 1000 ? number : std::max(newest, number);
    }
  }
  return runs || newest <= capability;
}

}  // namespace treadle::cuda
