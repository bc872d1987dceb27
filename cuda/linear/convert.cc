#include "linear/convert.h"

#include <cstring>
#include <string>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/dispatch.h"

namespace treadle::cuda {
namespace {

template <class To, class From>
void convert_typed(const void* source, void* target, size_t count) {
  const auto* from = static_cast<const From*>(source);
  auto* to = static_cast<To*>(target);
  for (size_t i = 0; i < count; ++i) to[i] = To(static_cast<float>(from[i]));
}

}  // namespace

void convert(ops::DType from, const void* source, ops::DType to, void* target, size_t count) {
  if (from == to) {
    std::memcpy(target, source, count * ops::dtype_size(to));
    return;
  }
  with_half_type(to, [&](auto tag) {
    using To = typename decltype(tag)::type;
    if (from == ops::DType::kF32) return convert_typed<To, float>(source, target, count);
    with_half_type(from, [&](auto other) {
      using From = typename decltype(other)::type;
      if constexpr (!std::is_same_v<To, From>) convert_typed<To, From>(source, target, count);
    });
  });
}

}  // namespace treadle::cuda
