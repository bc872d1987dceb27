// The JSON part of a safetensors file, before any number in it is trusted.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace treadle::loader {

/// One entry as it is written.
struct HeaderEntry {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> offsets;
};

/// Most dimensions of a tensor that are accepted; weights have 1 or 2.
constexpr size_t kMaxDimensions = 16;

/// Parses without building a document, so that a hostile header costs no more memory than the
/// entries it names. Accepts {name: {"dtype": string, "shape": [integers], "data_offsets":
/// [integers]}, "__metadata__": {name: string}} and nothing else. Throws Error(kInvalidModel).
std::vector<HeaderEntry> parse_header_json(std::string_view text, const std::string& file);

}  // namespace treadle::loader
