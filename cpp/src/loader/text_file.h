// Small files of a model directory.
#pragma once

#include <cstddef>
#include <string>

namespace treadle::loader {

/// The content of a regular file; `name` is what messages call it. Throws Error: kNotFound when it
/// is missing, kInvalidModel when it is longer than `max_bytes` or cannot be read.
std::string read_text_file(const std::string& path, const std::string& name, size_t max_bytes);

}  // namespace treadle::loader
