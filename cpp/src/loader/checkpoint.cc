#include "loader/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "loader/fields.h"
#include "loader/json.h"
#include "loader/text.h"
#include "loader/workspace_layout.h"

namespace treadle::loader {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = size_t{32} << 20;

// A shard must be a file of the directory itself: an index must not reach anything else.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

[[noreturn]] void fail_no_weights(const std::string& directory) {
  std::vector<std::string> pickles;
  std::vector<std::string> others;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const std::string type = it->path().extension().string();
    if (type == ".bin" || type == ".pt" || type == ".pth" || type == ".ckpt" || type == ".pkl") {
      pickles.push_back(name);
    } else if (type == ".safetensors" || type == ".gguf" || type == ".h5" || type == ".msgpack") {
      others.push_back(name);
    }
  }
  std::sort(pickles.begin(), pickles.end());
  std::sort(others.begin(), others.end());
  const std::string wanted = cat("no ", kSingle, " or ", kIndex, " in ", quote(directory, 1000));
  if (!pickles.empty()) {
    throw Error(ErrorCode::kUnsupported,
                cat(wanted, ", only ", list_text(pickles, 3),
                    ": pickle files are never loaded, since reading one can run any code; convert "
                    "them, for example with transformers' save_pretrained(..., "
                    "safe_serialization=True)"));
  }
  if (fs::is_directory(rank_directory(directory, 0), error)) {
    throw Error(ErrorCode::kNotFound,
                cat(wanted, "; a workspace's weights are there, but not its ", kWorkspaceConfig));
  }
  if (others.empty()) throw Error(ErrorCode::kNotFound, wanted);
  throw Error(ErrorCode::kNotFound, cat(wanted, "; it has ", list_text(others, 3)));
}

}  // namespace

Checkpoint::Checkpoint(const std::string& directory) {
  std::error_code error;
  if (fs::exists(fs::path(directory) / kSingle, error)) {
    open(directory, kSingle);
  } else if (fs::exists(fs::path(directory) / kIndex, error)) {
    open_index(directory, kIndex);
  } else {
    fail_no_weights(directory);
  }
}

void Checkpoint::open(const std::string& directory, const std::string& name) {
  files_.emplace_back((fs::path(directory) / name).string(), name);
  names_.push_back(name);
  for (Tensor& tensor : parse_safetensors(files_.back().bytes(), name)) {
    std::string key = tensor.name;
    const auto [it, added] =
        entries_.try_emplace(std::move(key), Entry{std::move(tensor), files_.size() - 1});
    if (!added) {
      fail_model(name, cat("tensor ", quote(it->first), " is in ", file_name(it->second), " too"));
    }
  }
}

void Checkpoint::open_index(const std::string& directory, const std::string& index) {
  const Json json = read_json_file((fs::path(directory) / index).string(), index, kMaxIndexBytes);
  const Fields fields(json, index);
  const Json* map = fields.find("weight_map");
  if (map == nullptr || !map->is_object() || map->empty()) {
    fields.fail("weight_map", "must be an object that names the file of every tensor");
  }
  std::set<std::string> shards;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !is_plain_name(file.get_ref<const std::string&>())) {
      fail_model(index, cat("weight_map: tensor ", quote(tensor), " is in ", value_text(file),
                            ": must be the plain name of a file beside the index"));
    }
    shards.insert(file.get<std::string>());
  }
  std::vector<std::string> missing;
  for (const std::string& shard : shards) {
    std::error_code error;
    if (!fs::exists(fs::path(directory) / shard, error)) missing.push_back(shard);
  }
  if (!missing.empty()) {
    throw Error(ErrorCode::kNotFound,
                cat(index, ": ", missing.size(), " of ", shards.size(), " files are missing in ",
                    quote(directory, 1000), ": ", list_text(missing)));
  }
  for (const std::string& shard : shards) open(directory, shard);
  for (const auto& [tensor, file] : map->items()) {
    const auto& name = file.get_ref<const std::string&>();
    const Entry* entry = find(tensor);
    if (entry == nullptr || file_name(*entry) != name) {
      const std::string instead = entry == nullptr ? "" : ", but in " + file_name(*entry);
      fail_model(index, cat("tensor ", quote(tensor), " is not in ", name, instead));
    }
  }
}

const Checkpoint::Entry* Checkpoint::find(std::string_view name) const {
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : &it->second;
}

void Checkpoint::prefetch(const Entry& entry) const noexcept {
  files_[entry.file].prefetch(entry.tensor.data);
}

void Checkpoint::drop(const Entry& entry, std::span<const std::byte> part) const noexcept {
  files_[entry.file].drop(part);
}

}  // namespace treadle::loader
