#include "loader/text.h"

#include <array>
#include <cstdio>

namespace treadle::loader {

void fail_model(const std::string& file, const std::string& message) {
  throw Error(ErrorCode::kInvalidModel, file + ": " + message);
}

void fail_unsupported(const std::string& file, const std::string& message) {
  throw Error(ErrorCode::kUnsupported, file + ": " + message);
}

std::string quote(std::string_view text, size_t limit) {
  const bool shortened = text.size() > limit;
  if (shortened) {
    // Cut between characters: a UTF-8 continuation byte is 10xxxxxx.
    while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0U) == 0x80U) --limit;
    text = text.substr(0, limit);
  }
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20U || byte == 0x7FU) {
      std::array<char, 8> escape{};
      (void)std::snprintf(escape.data(), escape.size(), "\\x%02x", byte);
      out += escape.data();
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
  }
  out += shortened ? "...\"" : "\"";
  return out;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) out += ", ";
    out += std::to_string(shape[i]);
  }
  return out + "]";
}

std::string list_text(const std::vector<std::string>& names, size_t limit) {
  std::string out;
  for (size_t i = 0; i < names.size() && i < limit; ++i) {
    if (i > 0) out += ", ";
    out += quote(names[i]);
  }
  if (names.size() > limit) out += cat(" and ", names.size() - limit, " more");
  return out;
}

}  // namespace treadle::loader
