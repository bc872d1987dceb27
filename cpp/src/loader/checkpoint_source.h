// The weights of a published checkpoint: its own tensors, stacked as they are computed.
#pragma once

#include <string>
#include <vector>

#include "loader/tensor_names.h"
#include "loader/weight_source.h"

namespace treadle::loader {

class CheckpointSource : public WeightSource {
 public:
  /// Throws Error as Checkpoint and verify_checkpoint do.
  CheckpointSource(const std::string& directory, const model::ModelSpec& spec);

  FusedLinear linear(LinearPart part, size_t layer) const override;
  std::string norm(NormPart part, size_t layer) const override;
  std::string embedding() const override { return names_.embedding.weight_name(); }
  std::vector<std::string> layer_tensors(size_t layer) const override;

 private:
  // Rows [row, row + rows) of a linear layer of the checkpoint.
  struct Segment {
    const LinearName* linear = nullptr;
    int64_t row = 0;
    int64_t rows = 0;
  };
  std::vector<Segment> segments(LinearPart part, size_t layer) const;
  std::vector<Segment> qkv_segments(const std::vector<LinearName>& qkv) const;

  FusedLinear dense(const std::vector<Segment>& segments) const;
  FusedLinear int4(const std::vector<Segment>& segments) const;
  ops::WeightPiece piece_of(const Segment& segment, bool convert,
                            std::vector<std::vector<float>>& copies) const;
  void append_bias(const Segment& segment, FusedLinear& out) const;
  const Tensor& tensor(const std::string& name) const { return checkpoint().find(name)->tensor; }

  const model::ModelSpec& spec_;
  ModelNames names_;
};

}  // namespace treadle::loader
