// Typed access to the fields of a JSON object. Every error names file, field, value and what would
// be right. A field that is null counts as absent, as it does for Hugging Face configurations.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "loader/json.h"

namespace treadle::loader {

class Fields {
 public:
  /// `object` is borrowed. `prefix` goes before field names in messages, for example
  /// "rope_scaling.". Throws Error(kInvalidModel) when `object` is not a JSON object.
  Fields(const Json& object, std::string file, std::string prefix = "");

  const std::string& file() const { return file_; }
  const Json& json() const { return *object_; }

  /// The field's value; null pointer when absent or null.
  const Json* find(const std::string& key) const;
  bool has(const std::string& key) const { return find(key) != nullptr; }

  /// An integer in [min, max]; `fallback` when absent (none: the field is required).
  int32_t integer(const std::string& key, std::optional<int32_t> fallback, int32_t min,
                  int32_t max) const;
  /// A finite number in [min, max].
  double number(const std::string& key, std::optional<double> fallback, double min,
                double max) const;
  bool boolean(const std::string& key, bool fallback) const;
  std::string string(const std::string& key, const std::string& fallback) const;
  std::vector<std::string> strings(const std::string& key) const;
  /// One integer or a list of them, each in [min, max]; empty when absent.
  std::vector<int32_t> integers(const std::string& key, int32_t min, int32_t max) const;
  std::optional<Fields> object(const std::string& key) const;

  /// Throws Error(kInvalidModel, "file: field is value: expectation").
  [[noreturn]] void fail(const std::string& key, const std::string& expectation) const;
  /// The same as kUnsupported.
  [[noreturn]] void unsupported(const std::string& key, const std::string& reason) const;

 private:
  std::string subject(const std::string& key) const;

  const Json* object_;
  std::string file_;
  std::string prefix_;
};

}  // namespace treadle::loader
