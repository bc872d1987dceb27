// A file mapped read-only into memory.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace treadle::loader {

/// Owns the mapping. The file must not be shortened while it is mapped: reading beyond its new end
/// would raise SIGBUS, which no check at open can prevent.
class MappedFile {
 public:
  /// Throws Error: kNotFound when there is no such file, kInvalidModel when it is not a regular
  /// file, is empty or cannot be mapped. `name` is what messages call it.
  MappedFile(const std::string& path, const std::string& name);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  /// Asks the system to read this part of the mapping ahead.
  void prefetch(std::span<const std::byte> part) const noexcept;
  /// Gives the part's whole pages back; reading them again reads the file again.
  void drop(std::span<const std::byte> part) const noexcept;

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace treadle::loader
