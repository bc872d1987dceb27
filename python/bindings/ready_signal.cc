#include "ready_signal.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include <treadle/error.h>

#ifdef __linux__
#include <sys/eventfd.h>
#else
#include <fcntl.h>
#endif

namespace treadle::python {
namespace {

[[noreturn]] void throw_errno(const char* what) {
  throw Error(ErrorCode::kInternal, std::string(what) + ": " + std::strerror(errno));
}

}  // namespace

ReadySignal::ReadySignal(bool with_fd) {
  if (!with_fd) return;
#ifdef __linux__
  read_fd_ = write_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (read_fd_ < 0) throw_errno("eventfd");
#else
  int fds[2];
  if (pipe(fds) != 0) throw_errno("pipe");
  for (int fd : fds) {
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, O_NONBLOCK);
  }
  read_fd_ = fds[0];
  write_fd_ = fds[1];
#endif
}

ReadySignal::~ReadySignal() {
  if (read_fd_ >= 0) close(read_fd_);
  if (write_fd_ >= 0 && write_fd_ != read_fd_) close(write_fd_);
}

void ReadySignal::post(uint64_t id) noexcept {
  std::lock_guard lock(mutex_);
  ready_.push_back(id);
  if (ready_.size() > 1) return;  // who takes the first takes this one too
  arrived_.notify_one();
  if (write_fd_ < 0) return;
  const uint64_t one = 1;
  // Cannot be full: the count is cleared by every take() and written at most once between two.
  [[maybe_unused]] const ssize_t written = write(write_fd_, &one, sizeof(one));
}

bool ReadySignal::wait_until(std::chrono::steady_clock::time_point until) {
  std::unique_lock lock(mutex_);
  return arrived_.wait_until(lock, until, [this] { return !ready_.empty(); });
}

std::vector<uint64_t> ReadySignal::take() {
  std::lock_guard lock(mutex_);
  if (read_fd_ >= 0 && !ready_.empty()) {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = read(read_fd_, &count, sizeof(count));
  }
  return std::exchange(ready_, {});
}

}  // namespace treadle::python
