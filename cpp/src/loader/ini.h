// config.ini files: one section of "key = value" lines.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace treadle::loader {

/// One line of a section.
struct IniEntry {
  std::string key;
  std::string value;
  int line = 0;  // from 1
};

/// Reads "key = value" lines of the section [`section`], in order. Blank lines, and what follows a
/// '#' or ';' that begins a line or comes after a blank, are left out; so is a byte order mark. A
/// key is letters, digits and '_'. Throws Error(kInvalidModel, "file: line N: ...") for any other
/// line, another section, a line before the first section and a key given twice.
std::vector<IniEntry> parse_ini(std::string_view text, std::string_view section,
                                const std::string& file);

/// Values of entries; each throws Error(kInvalidModel) that names line, key, value and what would
/// be right.
class IniValues {
 public:
  explicit IniValues(std::string file) : file_(std::move(file)) {}

  int32_t integer(const IniEntry& entry, int32_t min, int32_t max) const;
  /// One or several integers, separated by commas.
  std::vector<int32_t> integers(const IniEntry& entry, int32_t min, int32_t max) const;
  /// A finite number in [min, max].
  double number(const IniEntry& entry, double min, double max) const;
  /// 0 or 1, also as Python writes them: False or True.
  bool flag(const IniEntry& entry) const;

  /// "file: line N: key is value: expectation"
  [[noreturn]] void fail(const IniEntry& entry, const std::string& expectation) const;

 private:
  std::string file_;
};

}  // namespace treadle::loader
