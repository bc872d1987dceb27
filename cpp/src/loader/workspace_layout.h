// Where a workspace (made by `treadle convert`) keeps what, and under which names:
//
//   config.ini              sizes of the weights, and options that may be edited
//   (workspace_config.h) config.json, tokenizer.json, ...              the model's own files, as
//   they were kv_qparams.safetensors                        where there is one (load_kv_ranges)
//   weights/rank0/model.safetensors.index.json    names the shards
//   weights/rank0/embedding.safetensors           head and, unless it is the head, embedding
//   weights/rank0/layer-00000.safetensors         a layer's tensors in the order they are used
//   weights/rank0/norm.safetensors                the norm before the head
//
// A linear layer NAME is stored as it is computed, QKV as one and gate and up as one:
//
//   NAME.weight    [out][in]       F32, F16 or BF16; or, of a layer with 4-bit weights,
//   NAME.q         [out][in / 2]   U8      )
//   NAME.scales    [out][groups]   F32     ) as in ops::Int4Groups
//   NAME.zeros     [out][groups]   U8      )
//   NAME.group_of  [in]            I32     ) where groups are not runs of inputs
//   NAME.bias      [out]           F32, where there is one
//
// Every tensor begins at a multiple of 64 bytes; "_pad.NAME" tensors fill the gaps.
#pragma once

#include <string>
#include <vector>

#include "loader/tensor_names.h"
#include "loader/weight_source.h"

namespace treadle::loader {

constexpr const char* kWorkspaceConfig = "config.ini";
constexpr size_t kWorkspaceAlignment = 64;

/// True for a directory with a config.ini.
bool is_workspace(const std::string& directory);

/// The folder of one tensor-parallel rank's weights.
std::string rank_directory(const std::string& workspace, int rank);

/// What a workspace calls a layer, and its sizes.
LinearName workspace_linear(const model::ModelSpec& spec, LinearPart part, size_t layer);
std::string workspace_norm(NormPart part, size_t layer);
constexpr const char* kWorkspaceEmbedding = "embedding";

/// The parts of a layer, in the order they are used.
std::vector<LinearPart> layer_linears();
std::vector<NormPart> layer_norms(const model::ModelSpec& spec);

/// Fills gaps and carries nothing.
bool is_padding(const std::string& name);

}  // namespace treadle::loader
