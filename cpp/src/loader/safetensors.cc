#include "loader/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string_view>
#include <utility>

#include "loader/safetensors_header.h"
#include "loader/text.h"

namespace treadle::loader {
namespace {

constexpr std::array<TensorType, 21> kTypes = {{
    {"F32", 32, ops::DType::kF32},
    {"F16", 16, ops::DType::kF16},
    {"BF16", 16, ops::DType::kBF16},
    {"BOOL", 8, {}},
    {"F4", 4, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
    {"U8", 8, {}},
    {"I8", 8, {}},
    {"F8_E5M2", 8, {}},
    {"F8_E4M3", 8, {}},
    {"F8_E8M0", 8, {}},
    {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},
    {"I16", 16, {}},
    {"U16", 16, {}},
    {"I32", 32, {}},
    {"U32", 32, {}},
    {"I64", 64, {}},
    {"U64", 64, {}},
    {"F64", 64, {}},
}};

const TensorType* find_type(std::string_view name) {
  for (const TensorType& type : kTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

uint64_t read_header_length(std::span<const std::byte> bytes) {
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8U | std::to_integer<uint64_t>(bytes[i]);
  return length;
}

// Bytes a tensor of this type and shape has; empty when that overflows or is no whole number.
std::optional<uint64_t> byte_count(const TensorType& type, const std::vector<uint64_t>& shape) {
  uint64_t bits = static_cast<uint64_t>(type.bits);
  bool empty = false;
  for (const uint64_t dimension : shape) {
    // The limit keeps shapes within int64_t even where another dimension is 0.
    if (dimension > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return {};
    if (dimension == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(bits, dimension, &bits)) {
      return {};
    }
  }
  if (bits % 8 != 0) return {};
  return empty ? 0 : bits / 8;
}

std::string shape_text(const std::vector<uint64_t>& shape) {
  std::string out;
  for (const uint64_t dimension : shape) {
    out += (out.empty() ? "" : ", ") + std::to_string(dimension);
  }
  return "[" + out + "]";
}

Tensor check_entry(HeaderEntry entry, std::span<const std::byte> data, const std::string& file) {
  const std::string tensor = "tensor " + quote(entry.name);
  const TensorType* type = find_type(entry.dtype);
  if (type == nullptr) {
    fail_model(file, cat(tensor, ": dtype ", quote(entry.dtype),
                         " is not one of the format's (F32, F16, BF16, ...)"));
  }
  if (entry.offsets.size() != 2) {
    fail_model(file, cat(tensor, ": data_offsets has ", entry.offsets.size(),
                         " numbers: must be [begin, end]"));
  }
  const uint64_t begin = entry.offsets[0];
  const uint64_t end = entry.offsets[1];
  const std::string range = cat("data_offsets [", begin, ", ", end, "]");
  if (begin > end) fail_model(file, cat(tensor, ": ", range, " end before they begin"));
  if (end > data.size()) {
    fail_model(file, cat(tensor, ": ", range, " lie beyond the end of the file, which has ",
                         data.size(), " bytes of data: it is truncated or damaged"));
  }
  const std::optional<uint64_t> needed = byte_count(*type, entry.shape);
  if (!needed) {
    fail_model(file, cat(tensor, ": shape ", shape_text(entry.shape), " of ", type->name,
                         " has no valid size in bytes (it overflows or is not whole)"));
  }
  if (*needed != end - begin) {
    fail_model(file, cat(tensor, ": ", range, " are ", end - begin, " bytes, but shape ",
                         shape_text(entry.shape), " of ", type->name, " needs ", *needed));
  }
  return {.name = std::move(entry.name),
          .type = type,
          .shape = {entry.shape.begin(), entry.shape.end()},
          .data = data.subspan(begin, end - begin)};
}

// The tensors must follow one another from the first byte of the data to the last, as the reference
// implementation demands: a file with holes can hide content, one with overlaps is lying.
void check_coverage(const std::vector<Tensor>& tensors, std::span<const std::byte> data,
                    const std::string& file) {
  size_t expected = 0;
  const Tensor* previous = nullptr;
  for (const Tensor& tensor : tensors) {
    const auto begin = static_cast<size_t>(tensor.data.data() - data.data());
    if (begin < expected) {
      fail_model(file, cat("tensors ", quote(previous->name), " and ", quote(tensor.name),
                           " overlap at byte ", begin, " of the data"));
    }
    if (begin > expected) {
      fail_model(file, cat("tensor ", quote(tensor.name), " begins at byte ", begin,
                           " of the data, leaving a hole after byte ", expected));
    }
    expected = begin + tensor.data.size();
    previous = &tensor;
  }
  if (expected != data.size()) {
    fail_model(file, cat("the header describes ", expected, " bytes of data, but the file has ",
                         data.size()));
  }
}

}  // namespace

int64_t Tensor::elements() const { return static_cast<int64_t>(data.size()) * 8 / type->bits; }

std::vector<Tensor> parse_safetensors(std::span<const std::byte> bytes, const std::string& file) {
  constexpr size_t kPrefix = 8;
  if (bytes.size() < kPrefix) {
    fail_model(file, cat("has ", bytes.size(), " bytes, too few for a safetensors file"));
  }
  const uint64_t length = read_header_length(bytes);
  if (length > kMaxSafetensorsHeader) {
    fail_model(file, cat("header length is ", length, ": the format allows at most ",
                         kMaxSafetensorsHeader, ", so this is no safetensors file"));
  }
  if (length > bytes.size() - kPrefix) {
    fail_model(file, cat("header length is ", length, ", but only ", bytes.size() - kPrefix,
                         " bytes follow: the file is truncated"));
  }
  const std::span<const std::byte> data = bytes.subspan(kPrefix + length);
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + kPrefix, length);
  std::vector<Tensor> tensors;
  for (HeaderEntry& entry : parse_header_json(header, file)) {
    tensors.push_back(check_entry(std::move(entry), data, file));
  }
  std::sort(tensors.begin(), tensors.end(), [](const Tensor& a, const Tensor& b) {
    return std::pair(a.data.data(), a.data.size()) < std::pair(b.data.data(), b.data.size());
  });
  check_coverage(tensors, data, file);
  return tensors;
}

}  // namespace treadle::loader
