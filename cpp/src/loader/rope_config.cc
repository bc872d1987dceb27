#include "loader/rope_config.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "loader/text.h"

namespace treadle::loader {
namespace {

using model::ModelSpec;
using model::RopeKind;
using model::RopeSpec;

constexpr double kMinBase = 1.0 + 1e-6;  // at 1 every frequency is the same and yarn divides by 0
constexpr double kMaxBase = 1e12;
constexpr double kMaxFactor = 1e6;
constexpr int32_t kMaxLength = std::numeric_limits<int32_t>::max() / 2;

struct NamedKind {
  const char* name;
  RopeKind kind;
};
constexpr std::array<NamedKind, 5> kKinds = {{{"default", RopeKind::kDefault},
                                              {"linear", RopeKind::kLinear},
                                              {"dynamic", RopeKind::kDynamicNtk},
                                              {"llama3", RopeKind::kLlama3},
                                              {"yarn", RopeKind::kYarn}}};

// Every field with a meaning here. Those of another type than the chosen one have no effect, as in
// transformers; any other field could change results in a way that is not implemented.
constexpr std::array<std::string_view, 15> kKnown = {"rope_theta",
                                                     "rope_type",
                                                     "type",
                                                     "factor",
                                                     "original_max_position_embeddings",
                                                     "partial_rotary_factor",
                                                     "low_freq_factor",
                                                     "high_freq_factor",
                                                     "beta_fast",
                                                     "beta_slow",
                                                     "attention_factor",
                                                     "mscale",
                                                     "mscale_all_dim",
                                                     "truncate",
                                                     "finetuned"};

RopeKind read_kind(const Fields& rope) {
  const std::string type = rope.string("type", "default");
  const std::string name = rope.string("rope_type", type);
  const char* field = rope.has("rope_type") ? "rope_type" : "type";
  for (const NamedKind& known : kKinds) {
    if (name == known.name) return known.kind;
  }
  rope.unsupported(field, "this version knows default, linear, dynamic, llama3 and yarn");
}

void refuse_unknown_fields(const Fields& rope) {
  for (const auto& [key, value] : rope.json().items()) {
    const bool known = std::find(kKnown.begin(), kKnown.end(), key) != kKnown.end();
    if (!known && !value.is_null()) {
      rope.unsupported(key, "this field of the rotary embedding is not implemented");
    }
  }
}

int32_t read_rotary_dim(const Fields& config, const std::optional<Fields>& rope, int32_t head_dim) {
  const double outer = config.number("partial_rotary_factor", 1.0, 0.0, 1.0);
  const double part = rope ? rope->number("partial_rotary_factor", outer, 0.0, 1.0) : outer;
  const auto dim = static_cast<int32_t>(head_dim * part);
  if (dim < 2 || dim % 2 != 0) {
    fail_model(config.file(),
               cat("partial_rotary_factor is ", part, ": of head_dim ", head_dim, " it leaves ",
                   dim, " rotary dimensions; they must be even and at least 2"));
  }
  return dim;
}

int32_t read_original_len(const Fields& config, const Fields& rope, int32_t fallback) {
  const char* key = "original_max_position_embeddings";
  const int32_t inner = rope.integer(key, fallback, 1, kMaxLength);
  return config.integer(key, inner, 1, kMaxLength);
}

void read_llama3(const Fields& rope, RopeSpec& spec) {
  spec.low_freq_factor = rope.number("low_freq_factor", {}, 1e-6, kMaxFactor);
  spec.high_freq_factor = rope.number("high_freq_factor", {}, 1e-6, kMaxFactor);
  if (spec.high_freq_factor <= spec.low_freq_factor) {
    rope.fail("high_freq_factor", cat("must be above low_freq_factor, ", spec.low_freq_factor));
  }
}

void read_yarn(const Fields& rope, int32_t max_len, RopeSpec& spec) {
  const double ratio = static_cast<double>(max_len) / spec.original_len;
  spec.factor = rope.number("factor", ratio, 1e-3, kMaxFactor);
  const auto or_default = [](double value, double fallback) {
    return value == 0 ? fallback : value;
  };
  spec.beta_fast = or_default(rope.number("beta_fast", 32.0, 0.0, kMaxFactor), 32.0);
  spec.beta_slow = or_default(rope.number("beta_slow", 1.0, 0.0, kMaxFactor), 1.0);
  if (spec.beta_fast < spec.beta_slow) {
    rope.fail("beta_fast", cat("must not be below beta_slow, ", spec.beta_slow));
  }
  if (rope.has("attention_factor")) {
    spec.attention_factor = rope.number("attention_factor", {}, 1e-6, kMaxFactor);
  }
  spec.mscale = rope.number("mscale", 0.0, 0.0, kMaxFactor);
  spec.mscale_all_dim = rope.number("mscale_all_dim", 0.0, 0.0, kMaxFactor);
  spec.truncate = rope.boolean("truncate", true);
}

void require_dynamic_dim(const Fields& config, const RopeSpec& spec) {
  if (spec.rotary_dim <= 2) {
    fail_model(config.file(),
               "dynamic RoPE scaling needs more than 2 rotary dimensions, head_dim "
               "and partial_rotary_factor leave 2");
  }
}

bool is_given(const Fields& config, const std::string& key) {
  const Json* value = config.find(key);
  return value != nullptr && !(value->is_object() && value->empty());
}

// rope_scaling goes before rope_parameters, as in transformers.
std::optional<Fields> rope_object(const Fields& config) {
  const bool scaling = is_given(config, "rope_scaling");
  const bool parameters = is_given(config, "rope_parameters");
  if (scaling && parameters && *config.find("rope_scaling") != *config.find("rope_parameters")) {
    config.fail("rope_scaling", "contradicts rope_parameters, keep one of the two");
  }
  if (scaling) return config.object("rope_scaling");
  if (parameters) return config.object("rope_parameters");
  return std::nullopt;
}

}  // namespace

void read_rope(const Fields& config, ModelSpec& spec) {
  RopeSpec rope;
  const std::optional<Fields> object = rope_object(config);
  rope.base = config.number("rope_theta", 10000.0, kMinBase, kMaxBase);
  rope.rotary_dim = read_rotary_dim(config, object, spec.head_dim);
  rope.original_len = spec.max_position_embeddings;
  if (object) {
    rope.base = object->number("rope_theta", rope.base, kMinBase, kMaxBase);
    rope.kind = read_kind(*object);
    refuse_unknown_fields(*object);
    if (rope.kind == RopeKind::kLlama3 || rope.kind == RopeKind::kYarn) {
      rope.original_len = read_original_len(config, *object, spec.max_position_embeddings);
    }
    if (rope.kind == RopeKind::kYarn) {
      read_yarn(*object, spec.max_position_embeddings, rope);
    } else if (rope.kind != RopeKind::kDefault) {
      rope.factor = object->number("factor", {}, 1e-3, kMaxFactor);
    }
    if (rope.kind == RopeKind::kLlama3) read_llama3(*object, rope);
    if (rope.kind == RopeKind::kDynamicNtk) require_dynamic_dim(config, rope);
  }
  spec.rope = rope;
}

void read_internlm_rope(const Fields& config, ModelSpec& spec) {
  const std::optional<Fields> rotary = config.object("rotary");
  const bool standard = is_given(config, "rope_scaling") || is_given(config, "rope_parameters") ||
                        config.has("rope_theta");
  if (rotary && standard) {
    config.fail("rotary", "contradicts rope_theta, rope_scaling or rope_parameters, keep one");
  }
  if (standard) {
    read_rope(config, spec);
    return;
  }
  RopeSpec rope;
  rope.rotary_dim = spec.head_dim;
  rope.original_len = spec.max_position_embeddings;
  const std::string type = rotary ? rotary->string("type", "dynamic") : "dynamic";
  if (type == "dynamic") {
    rope.kind = RopeKind::kDynamicNtk;
    require_dynamic_dim(config, rope);
  } else if (type != "origin") {
    rotary->unsupported("type", "must be \"origin\" or \"dynamic\"");
  }
  if (rotary) {
    rope.base = rotary->number("base", 10000.0, kMinBase, kMaxBase);
    rope.factor = rotary->number("scaling_factor", 1.0, 1.0, kMaxFactor);
  }
  spec.rope = rope;
}

}  // namespace treadle::loader
