#include "loader/safetensors_writer.h"

#include <array>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>

#include "loader/text.h"

namespace treadle::loader {
namespace {

class File {
 public:
  explicit File(const std::string& path)
      : path_(path), file_(std::fopen(path.c_str(), "wb"), &std::fclose) {
    if (file_ == nullptr) fail();
  }

  void write(std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size()) fail();
  }
  void write(const std::string& text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

  /// Only closing tells whether everything has arrived.
  void close() {
    if (std::fclose(file_.release()) != 0) fail();
  }

 private:
  [[noreturn]] void fail() const {
    const std::string why = std::generic_category().message(errno);
    throw Error(ErrorCode::kInvalidArgument, cat("cannot write ", quote(path_, 1000), ": ", why));
  }

  std::string path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

std::string entry_text(const std::string& name, const std::string& dtype,
                       const std::vector<int64_t>& shape, size_t begin, size_t end) {
  std::string text = cat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":[");
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ',';
    text += std::to_string(shape[i]);
  }
  return text + cat("],\"data_offsets\":[", begin, ",", end, "]}");
}

size_t padding(size_t at, size_t alignment) { return (alignment - at % alignment) % alignment; }

}  // namespace

size_t TensorParts::bytes() const {
  size_t total = 0;
  for (const auto& part : parts) total += part.size();
  return total;
}

void write_safetensors(const std::string& path, const std::vector<TensorParts>& tensors,
                       size_t alignment) {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  size_t at = 0;
  for (const TensorParts& tensor : tensors) {
    if (const size_t gap = padding(at, alignment); gap > 0) {
      header += ',';
      header += entry_text("_pad." + tensor.name, "U8", {static_cast<int64_t>(gap)}, at, at + gap);
      at += gap;
    }
    header += ',';
    header += entry_text(tensor.name, tensor.dtype, tensor.shape, at, at + tensor.bytes());
    at += tensor.bytes();
  }
  header += "}";
  constexpr size_t kLengthBytes = 8;
  header.append(padding(kLengthBytes + header.size(), alignment), ' ');
  std::string length;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length += static_cast<char>(uint64_t{header.size()} >> (8 * i) & 0xFFU);
  }
  File file(path);
  file.write(length);
  file.write(header);
  at = 0;
  for (const TensorParts& tensor : tensors) {
    const std::string gap(padding(at, alignment), '\0');
    file.write(gap);
    at += gap.size() + tensor.bytes();
    for (const auto& part : tensor.parts) file.write(part);
  }
  file.close();
}

void write_text(const std::string& path, const std::string& text) {
  File file(path);
  file.write(text);
  file.close();
}

}  // namespace treadle::loader
