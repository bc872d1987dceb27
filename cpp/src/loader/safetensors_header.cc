#include "loader/safetensors_header.h"

#include <unordered_set>
#include <utility>

#include "loader/json.h"
#include "loader/text.h"

namespace treadle::loader {
namespace {

class HeaderParser final : public nlohmann::json_sax<Json> {
 public:
  std::vector<HeaderEntry> take() { return std::move(entries_); }
  const std::string& problem() const { return problem_; }

  bool null() override { return unexpected("null"); }
  bool boolean(bool value) override { return unexpected(value ? "true" : "false"); }
  bool number_float(double, const std::string& text) override { return unexpected(text); }
  bool number_integer(int64_t value) override { return unexpected(std::to_string(value)); }
  bool binary(Json::binary_t&) override { return unexpected("binary data"); }

  bool number_unsigned(uint64_t value) override {
    if (place_ != Place::kShape && place_ != Place::kOffsets) {
      return unexpected(std::to_string(value));
    }
    auto& list = place_ == Place::kShape ? entries_.back().shape : entries_.back().offsets;
    if (list.size() >= kMaxDimensions) {
      return refuse(cat(subject(), " has more than ", kMaxDimensions, " numbers"));
    }
    list.push_back(value);
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::kMetadata) return true;  // free text about the file, not used
    if (place_ != Place::kTensor || field_ != kDtype) return unexpected(quote(value));
    entries_.back().dtype = std::move(value);
    return true;
  }

  bool key(std::string& name) override {
    switch (place_) {
      case Place::kTop:
        in_metadata_ = name == "__metadata__";
        if (!seen_.insert(name).second) return refuse("tensor " + quote(name) + " is given twice");
        if (!in_metadata_) entries_.emplace_back().name = std::move(name);
        return true;
      case Place::kMetadata:
        return true;
      default:
        return tensor_key(name);
    }
  }

  bool start_object(size_t) override {
    if (place_ == Place::kOutside) {
      place_ = Place::kTop;
    } else if (place_ == Place::kTop) {
      place_ = in_metadata_ ? Place::kMetadata : Place::kTensor;
      fields_ = 0;
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor && fields_ != (kDtype | kShape | kOffsets)) {
      return refuse(cat("tensor ", quote(entries_.back().name),
                        " lacks one of dtype, shape and data_offsets"));
    }
    place_ = place_ == Place::kTop ? Place::kOutside : Place::kTop;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::kTensor || field_ == kDtype) return unexpected("a list");
    place_ = field_ == kShape ? Place::kShape : Place::kOffsets;
    return true;
  }

  bool end_array() override {
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::detail::exception&) override {
    return refuse(
        cat("header is not valid JSON, near ", quote(token, 40), " at its byte ", position));
  }

 private:
  enum class Place { kOutside, kTop, kMetadata, kTensor, kShape, kOffsets };
  enum Field : unsigned { kDtype = 1, kShape = 2, kOffsets = 4 };

  bool tensor_key(const std::string& name) {
    if (name == "dtype") {
      field_ = kDtype;
    } else if (name == "shape") {
      field_ = kShape;
    } else if (name == "data_offsets") {
      field_ = kOffsets;
    } else {
      return refuse(cat("tensor ", quote(entries_.back().name), " has an unknown field ",
                        quote(name), "; the format has dtype, shape and data_offsets"));
    }
    if ((fields_ & field_) != 0) {
      return refuse(cat("tensor ", quote(entries_.back().name), " has ", name, " twice"));
    }
    fields_ |= field_;
    return true;
  }

  std::string subject() const {
    switch (place_) {
      case Place::kOutside:
        return "header";
      case Place::kTop:
        return in_metadata_ ? "__metadata__" : "tensor " + quote(entries_.back().name);
      case Place::kMetadata:
        return "__metadata__";
      default:
        break;
    }
    const char* field = field_ == kDtype ? "dtype" : field_ == kShape ? "shape" : "data_offsets";
    return cat("tensor ", quote(entries_.back().name), ": ", field);
  }

  bool unexpected(const std::string& what) {
    const char* right = "an object";
    if (place_ == Place::kMetadata) right = "a string";
    if (place_ == Place::kTensor) {
      right = field_ == kDtype ? "a string" : "a list of non-negative integers";
    }
    if (place_ == Place::kShape || place_ == Place::kOffsets) right = "a non-negative integer";
    return refuse(cat(subject(), " is or holds ", what, ": must be ", right));
  }

  bool refuse(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  Place place_ = Place::kOutside;
  bool in_metadata_ = false;
  unsigned field_ = kDtype;
  unsigned fields_ = 0;
  std::vector<HeaderEntry> entries_;
  std::unordered_set<std::string> seen_;
  std::string problem_;
};

}  // namespace

std::vector<HeaderEntry> parse_header_json(std::string_view text, const std::string& file) {
  HeaderParser parser;
  if (!Json::sax_parse(text.begin(), text.end(), &parser)) fail_model(file, parser.problem());
  return parser.take();
}

}  // namespace treadle::loader
