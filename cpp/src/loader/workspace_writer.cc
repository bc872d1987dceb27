#include "loader/workspace_writer.h"

#include <algorithm>
#include <deque>
#include <filesystem>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "loader/json.h"
#include "loader/loader.h"
#include "loader/safetensors_writer.h"
#include "loader/text.h"
#include "loader/weight_source.h"
#include "loader/workspace_layout.h"

namespace treadle::loader {
namespace {

namespace fs = std::filesystem;
using model::ModelSpec;

std::span<const std::byte> bytes_at(const void* data, int64_t bytes) {
  return {static_cast<const std::byte*>(data), static_cast<size_t>(bytes)};
}

const char* type_name(ops::DType type) {
  return type == ops::DType::kF16 ? "F16" : type == ops::DType::kBF16 ? "BF16" : "F32";
}

class Writer {
 public:
  Writer(const WeightSource& source, const ModelSpec& spec, std::string folder,
         const std::function<void(int64_t, int64_t)>& progress)
      : source_(source), spec_(spec), folder_(std::move(folder)), progress_(progress) {
    report();
  }

  void write() {
    std::error_code error;
    fs::create_directories(folder_, error);
    if (error) {
      throw Error(ErrorCode::kInvalidArgument,
                  cat("cannot make ", quote(folder_, 1000), ": ", error.message()));
    }
    add_linear(LinearPart::kHead, 0);
    if (!spec_.tied_embeddings) add_tensor(kWorkspaceEmbedding, source_.embedding());
    finish("embedding.safetensors");
    for (size_t i = 0; i < static_cast<size_t>(spec_.num_layers); ++i) {
      for (const NormPart part : layer_norms(spec_)) {
        add_tensor(workspace_norm(part, i), source_.norm(part, i));
      }
      for (const LinearPart part : layer_linears()) add_linear(part, i);
      std::string number = std::to_string(i);
      number.insert(0, 5 - std::min<size_t>(5, number.size()), '0');
      finish("layer-" + number + ".safetensors");
    }
    add_tensor(workspace_norm(NormPart::kFinal, 0), source_.norm(NormPart::kFinal, 0));
    finish("norm.safetensors");
    const Json index = {{"metadata", {{"total_size", written_}}}, {"weight_map", weight_map_}};
    write_text((fs::path(folder_) / "model.safetensors.index.json").string(), index.dump(1) + "\n");
  }

 private:
  // As it is stored.
  void add_tensor(const std::string& name, const std::string& from) {
    const Tensor& tensor = source_.checkpoint().find(from)->tensor;
    tensors_.push_back({name, tensor.type->name, tensor.shape, {tensor.data}});
    used_.push_back(from);
  }

  void add_linear(LinearPart part, size_t layer) {
    const std::string name = workspace_linear(spec_, part, layer).name;
    const FusedLinear& from = linears_.emplace_back(source_.linear(part, layer));
    if (from.groups.empty()) {
      const ops::DType dtype = from.pieces[0].dtype;
      TensorParts weight{name + ".weight", type_name(dtype), {from.rows, from.in}, {}};
      for (const ops::WeightPiece& piece : from.pieces) {
        const auto element = static_cast<int64_t>(ops::dtype_size(dtype));
        weight.parts.push_back(bytes_at(piece.data, piece.rows * from.in * element));
      }
      tensors_.push_back(std::move(weight));
    } else {
      add_int4(name, from);
    }
    if (!from.bias.empty()) {
      tensors_.push_back(
          {name + ".bias", "F32", {from.rows}, {std::as_bytes(std::span(from.bias))}});
    }
    used_.insert(used_.end(), from.used.begin(), from.used.end());
  }

  void add_int4(const std::string& name, const FusedLinear& from) {
    const int64_t groups = from.in / from.groups[0].group_size;
    TensorParts q{name + ".q", "U8", {from.rows, from.in / 2}, {}};
    TensorParts scales{name + ".scales", "F32", {from.rows, groups}, {}};
    TensorParts zeros{name + ".zeros", "U8", {from.rows, groups}, {}};
    for (const ops::WeightPiece& piece : from.pieces) {
      const int64_t count = piece.rows * groups;
      q.parts.push_back(bytes_at(piece.data, piece.rows * from.in / 2));
      scales.parts.push_back(bytes_at(piece.int4->scales, count * int64_t{sizeof(float)}));
      zeros.parts.push_back(bytes_at(piece.int4->zeros, count));
    }
    for (TensorParts* tensor : {&q, &scales, &zeros}) tensors_.push_back(std::move(*tensor));
    if (const int32_t* group_of = from.groups[0].group_of; group_of != nullptr) {
      tensors_.push_back({name + ".group_of",
                          "I32",
                          {from.in},
                          {bytes_at(group_of, from.in * int64_t{sizeof(int32_t)})}});
    }
  }

  // One shard; a layer of the model is in memory at a time.
  void finish(const std::string& file) {
    write_safetensors((fs::path(folder_) / file).string(), tensors_, kWorkspaceAlignment);
    for (const TensorParts& tensor : tensors_) {
      weight_map_[tensor.name] = file;
      written_ += tensor.bytes();
    }
    for (const std::string& name : used_) {
      const Checkpoint::Entry& entry = *source_.checkpoint().find(name);
      done_ += static_cast<int64_t>(entry.tensor.data.size());
      source_.checkpoint().drop(entry, entry.tensor.data);
    }
    tensors_.clear();
    linears_.clear();
    used_.clear();
    report();
  }

  void report() const {
    if (progress_) progress_(done_, source_.bytes());
  }

  const WeightSource& source_;
  const ModelSpec& spec_;
  const std::string folder_;
  const std::function<void(int64_t, int64_t)>& progress_;
  std::vector<TensorParts> tensors_;  // of the shard
  std::deque<FusedLinear> linears_;   // what they borrow from
  std::vector<std::string> used_;
  Json weight_map_ = Json::object();
  size_t written_ = 0;
  int64_t done_ = 0;
};

}  // namespace

void write_workspace_weights(const WeightSource& source, const ModelSpec& spec,
                             const std::string& out,
                             const std::function<void(int64_t, int64_t)>& progress) {
  Writer(source, spec, rank_directory(out, 0), progress).write();
}

void write_workspace(const std::string& directory, const std::string& out,
                     const WorkspaceConfig& settings,
                     const std::function<void(int64_t, int64_t)>& progress) {
  if (is_workspace(directory)) {
    throw Error(
        ErrorCode::kInvalidArgument,
        cat(quote(directory, 1000), " is a workspace already: it has a ", kWorkspaceConfig));
  }
  const ModelSpec spec = read_spec(directory);
  const std::string config = workspace_config_text(spec, stored_dtype(directory, spec), settings);
  const std::unique_ptr<WeightSource> source = open_weights(directory, spec);
  write_workspace_weights(*source, spec, out, progress);
  write_text((fs::path(out) / kWorkspaceConfig).string(), config);
}

}  // namespace treadle::loader
