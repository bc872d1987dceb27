// Any text as config.json, and after a zero byte as generation_config.json: either an Error with a
// clean message, or a ModelSpec that the rest of the engine can rely on.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>

#include "fuzz_check.h"
#include "loader/config.h"
#include "loader/tensor_names.h"
#include "model/model_options.h"
#include "model/rope.h"
#include "treadle/error.h"

namespace {

using treadle::fuzz::require;
using treadle::model::ModelSpec;

void check_rope(const ModelSpec& spec) {
  const treadle::model::RopeTable table = treadle::model::make_rope_table(spec.rope);
  require(spec.rope.rotary_dim > 0 && spec.rope.rotary_dim <= spec.head_dim);
  require(table.inv_freq.size() == static_cast<size_t>(spec.rope.rotary_dim) / 2);
  for (const float f : table.inv_freq) require(std::isfinite(f) && f >= 0.0F);
  require(std::isfinite(table.attention_factor));
  if (table.dynamic_base > 0.0) {
    require(table.original_len > 0);
    const double base = treadle::model::dynamic_ntk_base(spec.rope, 2LL * table.original_len);
    require(std::isfinite(base) && base > 0.0);
  }
}

void check_spec(const ModelSpec& spec) {
  require(!spec.family.empty());
  require(spec.num_layers > 0 && spec.num_heads > 0 && spec.num_kv_heads > 0);
  require(spec.num_heads % spec.num_kv_heads == 0 && spec.qkv_features() > 0);
  require(spec.head_dim > 0 && spec.head_dim % 2 == 0 && spec.head_dim <= 256);
  require(spec.layer_uses_window.size() == static_cast<size_t>(spec.num_layers));
  for (const uint8_t uses : spec.layer_uses_window) require(uses == 0 || spec.sliding_window > 0);
  for (const int32_t id : spec.eos_token_ids) require(id >= 0 && id < spec.vocab_size);
  require(spec.logn_len == 0 || spec.logn_len > 1);
  require(std::isfinite(spec.norm_eps) && spec.norm_eps >= 0.0F);
  int64_t elements = 0;
  const auto names = treadle::loader::tensor_names(spec);
  for (const auto& tensor : treadle::loader::expected_tensors(spec, names)) {
    int64_t count = 1;
    for (const int64_t dimension : tensor.shape) {
      require(dimension > 0 && count <= std::numeric_limits<int64_t>::max() / dimension);
      count *= dimension;
    }
    require(elements <= std::numeric_limits<int64_t>::max() / 4 - count);
    elements += count;
  }
  check_rope(spec);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t split = all.find('\0');
  std::optional<std::string_view> generation;
  if (split != std::string_view::npos) generation = all.substr(split + 1);
  try {
    ModelSpec spec = treadle::loader::parse_spec(all.substr(0, split), generation);
    check_spec(spec);
    treadle::model::apply_options(spec, 2.0, 1);
    check_spec(spec);
  } catch (const treadle::Error& error) {
    treadle::fuzz::check_message(error, "");
  }
  return 0;
}
