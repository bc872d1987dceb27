#include "loader/verify.h"

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "loader/text.h"

namespace treadle::loader {
namespace {

using Entry = Checkpoint::Entry;

std::string wrong_shape(const Checkpoint& checkpoint, const Entry& entry,
                        const ExpectedTensor& expected) {
  return cat("tensor ", quote(expected.name), " in ", checkpoint.file_name(entry), " has shape ",
             shape_text(entry.tensor.shape), ", config.json needs ", shape_text(expected.shape));
}

std::string listed(const char* what, const std::vector<std::string>& names) {
  if (names.empty()) return "";
  return cat(names.size(), " ", what,
             names.size() == 1 ? " tensor: " : " tensors: ", list_text(names));
}

}  // namespace

int64_t verify_tensors(const Checkpoint& checkpoint, const model::ModelSpec& spec,
                       const std::vector<ExpectedTensor>& expected,
                       const std::function<bool(const std::string&)>& tolerated) {
  int64_t bytes = 0;
  std::vector<std::string> missing;
  std::vector<std::string> shapes;
  std::set<std::string_view> known;
  for (const ExpectedTensor& tensor : expected) {
    known.insert(tensor.name);
    const Entry* entry = checkpoint.find(tensor.name);
    if (entry == nullptr) {
      missing.push_back(tensor.name);
    } else if (entry->tensor.shape != tensor.shape) {
      shapes.push_back(wrong_shape(checkpoint, *entry, tensor));
    } else {
      bytes += static_cast<int64_t>(entry->tensor.data.size());
    }
  }
  std::vector<std::string> unexpected;
  for (const auto& [name, entry] : checkpoint.entries()) {
    if (!known.contains(name) && !tolerated(name)) unexpected.push_back(name);
  }
  if (!missing.empty() || !unexpected.empty()) {
    const std::string separator = missing.empty() || unexpected.empty() ? "" : "; ";
    throw Error(
        ErrorCode::kInvalidModel,
        cat("the weights do not fit config.json (", spec.architecture, ", ", spec.num_layers,
            " layers): ", listed("missing", missing), separator, listed("unexpected", unexpected)));
  }
  if (!shapes.empty()) {
    const std::string more = shapes.size() == 1 ? "" : cat(" (and ", shapes.size() - 1, " more)");
    throw Error(ErrorCode::kInvalidModel, shapes[0] + more);
  }
  for (const ExpectedTensor& tensor : expected) {
    const Entry& entry = *checkpoint.find(tensor.name);
    const std::string type = entry.tensor.type->name;
    if (tensor.kind == ExpectedTensor::Kind::kByte) {
      if (type != "U8") {
        fail_model(checkpoint.file_name(entry),
                   cat("tensor ", quote(tensor.name), " has dtype ", type, ": must be U8"));
      }
    } else if (tensor.kind != ExpectedTensor::Kind::kFloat) {
      const bool wide = tensor.kind == ExpectedTensor::Kind::kInteger && type == "I64";
      if (type != "I32" && !wide) {
        fail_model(checkpoint.file_name(entry),
                   cat("tensor ", quote(tensor.name), " has dtype ", type, ": must be I32"));
      }
    } else if (!entry.tensor.type->weight) {
      fail_unsupported(checkpoint.file_name(entry),
                       cat("tensor ", quote(tensor.name), " has dtype ", entry.tensor.type->name,
                           ": weights must be F32, F16 or BF16"));
    }
  }
  return bytes;
}

int64_t verify_checkpoint(const Checkpoint& checkpoint, const model::ModelSpec& spec,
                          const ModelNames& names) {
  return verify_tensors(checkpoint, spec, expected_tensors(spec, names),
                        [&](const std::string& name) { return is_tolerated(name, spec, names); });
}

}  // namespace treadle::loader
