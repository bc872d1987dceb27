// JSON from files that nobody vouches for.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace treadle::loader {

using Json = nlohmann::json;

/// Deepest nesting of objects and arrays that parse_json accepts; config.json needs about 4.
constexpr int kMaxJsonDepth = 64;

/// Parses `text`. Throws Error(kInvalidModel) that begins with `file` for bad syntax, bad UTF-8, a
/// number no double can hold, nesting beyond kMaxJsonDepth and a key given twice.
Json parse_json(std::string_view text, const std::string& file);

/// Reads a regular file and parses it; `name` is what messages call it. Throws Error: kNotFound
/// when it is missing, kInvalidModel when it is longer than `max_bytes` or as parse_json does.
Json read_json_file(const std::string& path, const std::string& name, size_t max_bytes);

/// The value as JSON, shortened for a message.
std::string value_text(const Json& value);

}  // namespace treadle::loader
