// The safetensors format: 8 bytes header length (little endian), that many bytes of JSON, then the
// tensors' bytes. https://github.com/huggingface/safetensors#format
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ops/types.h"

namespace treadle::loader {

/// An element type of the format: all of them are understood, few can be weights.
struct TensorType {
  const char* name;                  // "BF16"
  int bits;                          // of one element
  std::optional<ops::DType> weight;  // set for F32, F16 and BF16
};

/// A tensor of a safetensors file. `data` points into the bytes that were parsed.
struct Tensor {
  std::string name;
  const TensorType* type = nullptr;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;

  int64_t elements() const;
};

/// Longest header the format allows.
constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

/// Reads the header of a whole file and checks it: header length, JSON (exactly the format's fields
/// and types, no name twice), known dtypes, shape and dtype against the byte range without
/// overflow, and byte ranges that cover the rest of the file with neither holes nor overlaps.
/// Returns the tensors in file order. Throws Error(kInvalidModel) that begins with `file` and names
/// tensor and numbers.
std::vector<Tensor> parse_safetensors(std::span<const std::byte> bytes, const std::string& file);

}  // namespace treadle::loader
