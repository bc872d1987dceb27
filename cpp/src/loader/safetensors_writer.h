// Writes safetensors files (safetensors.h reads them).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace treadle::loader {

/// A tensor to be written: its bytes are the parts, one after the other. Parts are borrowed.
struct TensorParts {
  std::string name;
  std::string dtype;  // "BF16"
  std::vector<int64_t> shape;
  std::vector<std::span<const std::byte>> parts;

  size_t bytes() const;
};

/// Writes a file whose tensors lie in the given order, each at a multiple of `alignment` bytes; U8
/// tensors "_pad.NAME" fill the gap before a tensor. Names must be ASCII without quotes. Throws
/// Error(kInvalidArgument) that names the path where it cannot be written, for example on a full
/// disk.
void write_safetensors(const std::string& path, const std::vector<TensorParts>& tensors,
                       size_t alignment);

/// Writes `text` to a new file; throws as write_safetensors does.
void write_text(const std::string& path, const std::string& text);

}  // namespace treadle::loader
