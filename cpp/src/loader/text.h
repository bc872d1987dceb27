// Error messages of the loader: one way to build them, one way to quote what a file said.
#pragma once

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "treadle/error.h"

namespace treadle::loader {

/// Everything written one after the other.
template <typename... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Throws Error(kInvalidModel, "file: message").
[[noreturn]] void fail_model(const std::string& file, const std::string& message);

/// Throws Error(kUnsupported, "file: message").
[[noreturn]] void fail_unsupported(const std::string& file, const std::string& message);

/// The text in double quotes, shortened to about `limit` bytes. Always valid UTF-8: names come from
/// files that may be hostile, so control characters and stray bytes are escaped.
std::string quote(std::string_view text, size_t limit = 100);

/// "[2, 3]"
std::string shape_text(const std::vector<int64_t>& shape);

/// The first `limit` names, quoted and comma separated, then "and N more".
std::string list_text(const std::vector<std::string>& names, size_t limit = 8);

}  // namespace treadle::loader
