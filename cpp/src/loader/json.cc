#include "loader/json.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "loader/text.h"
#include "loader/text_file.h"

namespace treadle::loader {
namespace {

// Builds the document while it checks what the library's own builder does not: depth and keys given
// twice. Any false ends the parse.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  Json take() { return std::move(root_); }
  const std::string& problem() const { return problem_; }

  bool null() override { return add(nullptr) != nullptr; }
  bool boolean(bool value) override { return add(value) != nullptr; }
  bool number_integer(int64_t value) override { return add(value) != nullptr; }
  bool number_unsigned(uint64_t value) override { return add(value) != nullptr; }
  bool number_float(double value, const std::string&) override { return add(value) != nullptr; }
  bool string(std::string& value) override { return add(std::move(value)) != nullptr; }
  bool binary(Json::binary_t&) override { return refuse("binary values are not JSON"); }

  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(std::string& name) override {
    if (stack_.back()->contains(name)) return refuse("key " + quote(name) + " is given twice");
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::detail::exception& error) override {
    // out_of_range is a number beyond double; the rest is syntax.
    constexpr int kNumberOverflow = 406;
    const char* what =
        error.id == kNumberOverflow ? "a number is too large, near " : "not valid JSON, near ";
    return refuse(cat(what, quote(token, 40), " at byte ", position));
  }

 private:
  bool refuse(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  Json* add(Json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }

  bool open(Json container) {
    if (stack_.size() >= static_cast<size_t>(kMaxJsonDepth)) {
      return refuse(cat("nested deeper than ", kMaxJsonDepth, " levels"));
    }
    stack_.push_back(add(std::move(container)));
    return true;
  }

  bool close() {
    stack_.pop_back();
    return true;
  }

  Json root_;
  // Pointers stay valid: an element is only ever added to the innermost container, after which no
  // outer one grows until it is closed.
  std::vector<Json*> stack_;
  std::string key_;
  std::string problem_;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& file) {
  Builder builder;
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) fail_model(file, builder.problem());
  return builder.take();
}

Json read_json_file(const std::string& path, const std::string& name, size_t max_bytes) {
  return parse_json(read_text_file(path, name, max_bytes), name);
}

std::string value_text(const Json& value) {
  constexpr size_t kLimit = 80;
  if (value.is_string()) return quote(value.get_ref<const std::string&>(), kLimit);
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kLimit) text = text.substr(0, kLimit) + "...";
  return text;
}

}  // namespace treadle::loader
