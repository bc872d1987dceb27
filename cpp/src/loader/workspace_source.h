// The weights of a workspace, which are stored as they are computed: nothing but mapped memory.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "loader/tensor_names.h"
#include "loader/weight_source.h"

namespace treadle::loader {

class WorkspaceSource : public WeightSource {
 public:
  /// Opens rank 0. Throws Error as Checkpoint and verify_tensors do.
  WorkspaceSource(const std::string& directory, const model::ModelSpec& spec);

  FusedLinear linear(LinearPart part, size_t layer) const override;
  std::string norm(NormPart part, size_t layer) const override;
  std::string embedding() const override;
  std::vector<std::string> layer_tensors(size_t layer) const override;

 private:
  std::vector<ExpectedTensor> linear_tensors(const LinearName& linear) const;
  std::vector<ExpectedTensor> expected() const;
  void read_int4(const LinearName& linear, FusedLinear& out) const;
  bool quantized(const LinearName& linear) const;
  int64_t group_size(const LinearName& linear) const;
  const Tensor& tensor(const std::string& name) const { return checkpoint().find(name)->tensor; }
  [[noreturn]] void fail(const std::string& name, const std::string& problem) const;

  const model::ModelSpec& spec_;
};

}  // namespace treadle::loader
