#include "loader/ini.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "loader/text.h"

namespace treadle::loader {
namespace {

// Not isspace and isalnum, which ask the locale.
bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }
bool is_key(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

std::string_view without_comment(std::string_view line) {
  for (size_t i = 0; i < line.size(); ++i) {
    const bool begins = i == 0 || is_blank(line[i - 1]);
    if (begins && (line[i] == '#' || line[i] == ';')) return line.substr(0, i);
  }
  return line;
}

template <typename T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return {};
  return value;
}

}  // namespace

std::vector<IniEntry> parse_ini(std::string_view text, std::string_view section,
                                const std::string& file) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  std::vector<IniEntry> out;
  bool inside = false;
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trim(without_comment(text.substr(0, end)));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty()) continue;
    const auto fail = [&](const std::string& problem) {
      fail_model(file, cat("line ", number, ": ", problem));
    };
    if (line.front() == '[') {
      if (line != cat("[", section, "]")) {
        fail(cat(quote(line), ": the only section is [", section, "]"));
      }
      if (inside) fail(cat("[", section, "] begins a second time"));
      inside = true;
      continue;
    }
    const size_t equals = line.find('=');
    const std::string_view key = trim(line.substr(0, std::min(equals, line.size())));
    if (equals == std::string_view::npos || key.empty() ||
        !std::all_of(key.begin(), key.end(), is_key)) {
      fail(cat(quote(line), ": must be \"key = value\""));
    }
    if (!inside) fail(cat(quote(line), " stands before [", section, "]"));
    const auto same = [&](const IniEntry& entry) { return entry.key == key; };
    if (const auto first = std::find_if(out.begin(), out.end(), same); first != out.end()) {
      fail(cat(key, " is given in line ", first->line, ", too"));
    }
    out.push_back({std::string(key), std::string(trim(line.substr(equals + 1))), number});
  }
  if (!inside) fail_model(file, cat("has no section [", section, "]"));
  return out;
}

int32_t IniValues::integer(const IniEntry& entry, int32_t min, int32_t max) const {
  const auto value = parse_number<int32_t>(entry.value);
  if (!value || *value < min || *value > max) {
    fail(entry, cat("must be an integer from ", min, " to ", max));
  }
  return *value;
}

std::vector<int32_t> IniValues::integers(const IniEntry& entry, int32_t min, int32_t max) const {
  std::vector<int32_t> out;
  std::string_view rest = entry.value;
  while (true) {
    const size_t comma = rest.find(',');
    const auto value = parse_number<int32_t>(trim(rest.substr(0, comma)));
    if (!value || *value < min || *value > max) {
      fail(entry,
           cat("must be an integer from ", min, " to ", max, ", or several separated by commas"));
    }
    out.push_back(*value);
    if (comma == std::string_view::npos) return out;
    rest.remove_prefix(comma + 1);
  }
}

double IniValues::number(const IniEntry& entry, double min, double max) const {
  const auto value = parse_number<double>(entry.value);
  if (!value || !(*value >= min && *value <= max)) {  // false for NaN, too
    fail(entry, cat("must be a number from ", min, " to ", max));
  }
  return *value;
}

bool IniValues::flag(const IniEntry& entry) const {
  if (entry.value == "1" || entry.value == "True") return true;
  if (entry.value == "0" || entry.value == "False") return false;
  fail(entry, "must be 0 or 1");
}

void IniValues::fail(const IniEntry& entry, const std::string& expectation) const {
  fail_model(file_, cat("line ", entry.line, ": ", entry.key, " is ",
                        entry.value.empty() ? "empty" : quote(entry.value), ": ", expectation));
}

}  // namespace treadle::loader
