// The model families this version reads: one table, one small function each.
#pragma once

#include <span>
#include <string>

#include "loader/fields.h"
#include "model/model_spec.h"

namespace treadle::loader {

struct Family {
  const char* architecture;  // as config.json's "architectures" names it
  const char* model_type;    // as config.json's "model_type" names it
  const char* name;          // ModelSpec::family
  void (*read)(const Fields& config, model::ModelSpec& spec);
  // Architecture that transformers writes where it runs the family on another family's class.
  const char* also = "";
};

/// All families, in the order messages list them.
std::span<const Family> families();

/// The family of a configuration, by its architecture or, where that is absent, its model type.
/// Throws Error: kUnsupported for an unknown one, listing the known; kInvalidModel when the two
/// contradict each other or both are absent.
const Family& find_family(const Fields& config);

}  // namespace treadle::loader
