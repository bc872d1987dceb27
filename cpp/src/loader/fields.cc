#include "loader/fields.h"

#include <cmath>
#include <utility>

#include "loader/text.h"

namespace treadle::loader {
namespace {

bool is_integer_in(const Json& value, int32_t min, int32_t max) {
  if (value.is_number_unsigned()) {
    return max >= 0 && value.get<uint64_t>() <= static_cast<uint64_t>(max) &&
           static_cast<int64_t>(value.get<uint64_t>()) >= min;
  }
  return value.is_number_integer() && value.get<int64_t>() >= min && value.get<int64_t>() <= max;
}

}  // namespace

Fields::Fields(const Json& object, std::string file, std::string prefix)
    : object_(&object), file_(std::move(file)), prefix_(std::move(prefix)) {
  if (!object.is_object()) {
    const std::string field = prefix_.empty() ? "" : prefix_.substr(0, prefix_.size() - 1) + " ";
    fail_model(file_, cat(field, "is ", value_text(object), ": must be an object, {...}"));
  }
}

const Json* Fields::find(const std::string& key) const {
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

int32_t Fields::integer(const std::string& key, std::optional<int32_t> fallback, int32_t min,
                        int32_t max) const {
  const Json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value == nullptr || !is_integer_in(*value, min, max)) {
    fail(key, cat("must be an integer from ", min, " to ", max));
  }
  return value->get<int32_t>();
}

double Fields::number(const std::string& key, std::optional<double> fallback, double min,
                      double max) const {
  const Json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  const double number = value != nullptr && value->is_number() ? value->get<double>() : NAN;
  if (!(number >= min && number <= max)) {
    fail(key, cat("must be a number from ", min, " to ", max));
  }
  return number;
}

bool Fields::boolean(const std::string& key, bool fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) fail(key, "must be true or false");
  return value->get<bool>();
}

std::string Fields::string(const std::string& key, const std::string& fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) fail(key, "must be a string");
  return value->get<std::string>();
}

std::vector<std::string> Fields::strings(const std::string& key) const {
  const Json* value = find(key);
  if (value == nullptr) return {};
  if (!value->is_array()) fail(key, "must be a list of strings");
  std::vector<std::string> out;
  for (const Json& item : *value) {
    if (!item.is_string()) fail(key, "must be a list of strings");
    out.push_back(item.get<std::string>());
  }
  return out;
}

std::vector<int32_t> Fields::integers(const std::string& key, int32_t min, int32_t max) const {
  const Json* value = find(key);
  if (value == nullptr) return {};
  const Json list = value->is_array() ? *value : Json::array({*value});
  std::vector<int32_t> out;
  for (const Json& item : list) {
    if (!is_integer_in(item, min, max)) {
      fail(key, cat("must be an integer from ", min, " to ", max, " or a list of them"));
    }
    out.push_back(item.get<int32_t>());
  }
  return out;
}

std::optional<Fields> Fields::object(const std::string& key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return Fields(*value, file_, prefix_ + key + ".");
}

void Fields::fail(const std::string& key, const std::string& expectation) const {
  fail_model(file_, subject(key) + ": " + expectation);
}

void Fields::unsupported(const std::string& key, const std::string& reason) const {
  fail_unsupported(file_, subject(key) + ": " + reason);
}

std::string Fields::subject(const std::string& key) const {
  const Json* value = find(key);
  return prefix_ + key + (value == nullptr ? " is missing" : " is " + value_text(*value));
}

}  // namespace treadle::loader
