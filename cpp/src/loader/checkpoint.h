// The weight files of a model directory: one safetensors file or an index of shards.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "loader/mapped_file.h"
#include "loader/safetensors.h"

namespace treadle::loader {

class Checkpoint {
 public:
  /// Maps and checks `model.safetensors`, else the shards of `model.safetensors.index.json`. Throws
  /// Error: kNotFound when there is neither or a shard is missing, kUnsupported when there are only
  /// formats that run code when read (pickle), kInvalidModel for damage or for an index and shards
  /// that disagree.
  explicit Checkpoint(const std::string& directory);

  /// A tensor and where it is; null pointer when there is none of that name.
  struct Entry {
    Tensor tensor;
    size_t file = 0;
  };
  const Entry* find(std::string_view name) const;
  const std::map<std::string, Entry, std::less<>>& entries() const { return entries_; }
  const std::string& file_name(const Entry& entry) const { return names_[entry.file]; }

  /// Asks the system to read the tensor ahead.
  void prefetch(const Entry& entry) const noexcept;
  /// `part` of the entry's data is no longer needed; reading it again is slow but right.
  void drop(const Entry& entry, std::span<const std::byte> part) const noexcept;

 private:
  void open(const std::string& directory, const std::string& name);
  void open_index(const std::string& directory, const std::string& index);

  std::vector<std::string> names_;
  std::vector<MappedFile> files_;
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace treadle::loader
