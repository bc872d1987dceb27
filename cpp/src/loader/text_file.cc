#include "loader/text_file.h"

#include <filesystem>
#include <fstream>
#include <vector>

#include "loader/text.h"

namespace treadle::loader {

std::string read_text_file(const std::string& path, const std::string& name, size_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    throw Error(ErrorCode::kNotFound, cat(name, ": there is no file ", quote(path, 1000)));
  }
  // Anything but a regular file (a pipe, a device) could block or never end.
  if (!std::filesystem::is_regular_file(path, error)) {
    fail_model(name, cat(quote(path, 1000), " is not a regular file"));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text;
  std::vector<char> chunk(size_t{1} << 16);
  while (in.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || in.gcount() > 0) {
    text.append(chunk.data(), static_cast<size_t>(in.gcount()));
    if (text.size() > max_bytes) {
      fail_model(name, cat("is longer than ", max_bytes, " bytes, the most this file may have"));
    }
  }
  if (!in.eof()) fail_model(name, cat("cannot read ", quote(path, 1000)));
  return text;
}

}  // namespace treadle::loader
