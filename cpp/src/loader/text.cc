#include "loader/text.h"

#include <array>
#include <cstdio>

namespace treadle::loader {
namespace {

// Bytes of the UTF-8 character that `text` begins with (RFC 3629); 0 when it begins with none.
size_t character_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80U) return 1;
  const size_t length = first >= 0xF0U ? 4 : first >= 0xE0U ? 3 : 2;
  if (first < 0xC2U || first > 0xF4U || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0U) != 0x80U) return 0;
  }
  const unsigned char second = byte(1);
  const bool overlong = (first == 0xE0U && second < 0xA0U) || (first == 0xF0U && second < 0x90U);
  const bool surrogate = first == 0xEDU && second > 0x9FU;
  const bool too_large = first == 0xF4U && second > 0x8FU;
  return overlong || surrogate || too_large ? 0 : length;
}

}  // namespace

void fail_model(const std::string& file, const std::string& message) {
  throw Error(ErrorCode::kInvalidModel, file + ": " + message);
}

void fail_unsupported(const std::string& file, const std::string& message) {
  throw Error(ErrorCode::kUnsupported, file + ": " + message);
}

std::string quote(std::string_view text, size_t limit) {
  std::string out = "\"";
  size_t at = 0;
  while (at < text.size() && at < limit) {
    const size_t length = character_length(text.substr(at));
    const char first = text[at];
    if (length == 0 || static_cast<unsigned char>(first) < 0x20U || first == 0x7F) {
      std::array<char, 8> escape{};
      (void)std::snprintf(escape.data(), escape.size(), "\\x%02x",
                          static_cast<unsigned>(static_cast<unsigned char>(first)));
      out += escape.data();
      ++at;
      continue;
    }
    if (first == '"' || first == '\\') out += '\\';
    out += text.substr(at, length);
    at += length;
  }
  return out + (at < text.size() ? "...\"" : "\"");
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
