#include "loader/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "loader/text.h"

namespace treadle::loader {
namespace {

struct Descriptor {
  int fd;
  explicit Descriptor(int opened) : fd(opened) {}
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
};

std::string system_message(int error) { return std::strerror(error); }

size_t page_size() {
  const long size = ::sysconf(_SC_PAGESIZE);
  return size > 0 ? static_cast<size_t>(size) : 4096;
}

}  // namespace

MappedFile::MappedFile(const std::string& path, const std::string& name) {
  // O_NONBLOCK: opening a pipe that somebody put in the directory must not wait for a writer.
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.fd < 0) {
    const int error = errno;
    const std::string message =
        cat(name, ": cannot open ", quote(path, 1000), ": ", system_message(error));
    throw Error(error == ENOENT ? ErrorCode::kNotFound : ErrorCode::kInvalidModel, message);
  }
  struct stat info {};
  if (::fstat(file.fd, &info) != 0) fail_model(name, "fstat failed: " + system_message(errno));
  if (!S_ISREG(info.st_mode)) fail_model(name, quote(path, 1000) + " is not a regular file");
  if (info.st_size <= 0) fail_model(name, "is empty");
  if (static_cast<uintmax_t>(info.st_size) > std::numeric_limits<size_t>::max()) {
    fail_model(name, cat("has ", info.st_size, " bytes, more than can be mapped"));
  }
  size_ = static_cast<size_t>(info.st_size);
  void* const data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) {
    fail_model(name, cat("cannot map ", size_, " bytes: ", system_message(errno)));
  }
  data_ = static_cast<std::byte*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

void MappedFile::prefetch(std::span<const std::byte> part) const noexcept {
  if (part.empty()) return;
  // The mapping begins on a page, so offsets into it tell pages apart.
  const auto offset = static_cast<size_t>(part.data() - data_);
  const size_t first = offset / page_size() * page_size();
  // Advice only: a failure costs time, never correctness.
  (void)::madvise(data_ + first, offset + part.size() - first, MADV_WILLNEED);
}

void MappedFile::drop(std::span<const std::byte> part) const noexcept {
  const size_t page = page_size();
  const auto offset = static_cast<size_t>(part.data() - data_);
  const size_t first = (offset + page - 1) / page * page;
  const size_t last = (offset + part.size()) / page * page;
  if (last > first) (void)::madvise(data_ + first, last - first, MADV_DONTNEED);
}

}  // namespace treadle::loader
