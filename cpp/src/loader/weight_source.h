// What a model's weights are read from: a published checkpoint, or a workspace that was made from
// one. Both give the same pieces in the same order, whatever their files look like.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "loader/checkpoint.h"
#include "loader/int4.h"
#include "model/model_spec.h"
#include "ops/types.h"

namespace treadle::loader {

/// The linear layers that are computed as one each. kHead belongs to no layer.
enum class LinearPart : uint8_t { kQkv, kO, kGateUp, kDown, kHead };
/// The norms; kQ and kK where ModelSpec::qk_norm says so, kFinal belongs to no layer.
enum class NormPart : uint8_t { kAttn, kMlp, kQ, kK, kFinal };

/// A linear layer in host memory, as Ops::make_linear takes it. Moved, not copied: it points into
/// itself.
struct FusedLinear {
  FusedLinear() = default;
  FusedLinear(FusedLinear&&) = default;
  FusedLinear& operator=(FusedLinear&&) = default;

  std::vector<ops::WeightPiece> pieces;  // stacked in order; into mapped files or what is below
  std::vector<float> bias;               // [rows] or empty
  int64_t in = 0;
  int64_t rows = 0;
  std::vector<std::string> used;  // the tensors that it is made of

  std::vector<ops::Int4Groups> groups;
  std::vector<std::vector<float>> copies;
  std::map<std::string, Int4Weight> int4;  // by layer of the checkpoint

  int64_t parameters() const { return rows * in + static_cast<int64_t>(bias.size()); }
};

class WeightSource {
 public:
  explicit WeightSource(Checkpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}
  virtual ~WeightSource() = default;
  WeightSource(const WeightSource&) = delete;
  WeightSource& operator=(const WeightSource&) = delete;

  const Checkpoint& checkpoint() const { return checkpoint_; }
  /// Bytes of all tensors that will be used.
  int64_t bytes() const { return bytes_; }

  /// Throws Error: kInvalidModel for a value that cannot be, kUnsupported for parts that cannot be
  /// computed as one.
  virtual FusedLinear linear(LinearPart part, size_t layer) const = 0;
  /// Name of the norm's tensor.
  virtual std::string norm(NormPart part, size_t layer) const = 0;
  /// Name of the embedding table, [vocab][hidden]; not asked for when it is the head.
  virtual std::string embedding() const = 0;
  /// Tensors of a layer, in the order they are used.
  virtual std::vector<std::string> layer_tensors(size_t layer) const = 0;

 protected:
  /// `bytes` of linear weights that need not be aligned, as they are or, where that is needed to
  /// read whole elements of `size` bytes, in a new one of `copies`.
  static const std::byte* aligned(const std::byte* data, size_t bytes, size_t size,
                                  std::vector<std::vector<float>>& copies);
  void set_bytes(int64_t bytes) { bytes_ = bytes; }

 private:
  Checkpoint checkpoint_;
  int64_t bytes_ = 0;
};

/// Opens and checks a model directory's weights, or those of a workspace: every tensor is compared
/// with the spec (which must outlive the source) before any is used.
std::unique_ptr<WeightSource> open_weights(const std::string& directory,
                                           const model::ModelSpec& spec);

}  // namespace treadle::loader
