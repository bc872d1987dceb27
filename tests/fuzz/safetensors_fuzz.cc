// Any bytes as a safetensors file: either an Error with a clean message, or tensors that lie
// inside.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "fuzz_check.h"
#include "loader/safetensors.h"
#include "treadle/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using treadle::fuzz::require;
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  try {
    size_t total = 0;
    unsigned touched = 0;
    for (const treadle::loader::Tensor& tensor :
         treadle::loader::parse_safetensors(bytes, "f.safetensors")) {
      require(tensor.data.empty() ||
              (tensor.data.data() >= bytes.data() &&
               tensor.data.data() + tensor.data.size() <= bytes.data() + bytes.size()));
      int64_t elements = 1;
      for (const int64_t dimension : tensor.shape) {
        require(dimension >= 0);
        // Within the file's size whenever no dimension is 0, so that this cannot overflow.
        elements = dimension == 0 || elements == 0 ? 0 : elements * dimension;
      }
      require(elements == tensor.elements());
      total += tensor.data.size();
      for (const std::byte b : tensor.data) touched += std::to_integer<unsigned>(b);
    }
    require(total <= size && touched <= 255 * total);
  } catch (const treadle::Error& error) {
    treadle::fuzz::check_message(error, "f.safetensors: ");
  }
  return 0;
}
