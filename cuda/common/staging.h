// From pageable host memory to the device by way of pinned buffers, and back.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <vector>

#include <cuda_runtime_api.h>

#include "common/handles.h"

namespace treadle::cuda {

/// Pinned buffers used in turn for small copies to the device. The source may be changed as soon as
/// upload() returns; the copies are ordered by the stream.
class StagingRing {
 public:
  /// `fill` writes `bytes` bytes to the pinned buffer it is given.
  void upload(void* dst, size_t bytes, cudaStream_t stream, const std::function<void(char*)>& fill);
  void upload(void* dst, const void* host, size_t bytes, cudaStream_t stream);

 private:
  struct Slot {
    PinnedMemory memory;
    size_t size = 0;
    EventHandle done;
  };
  std::array<Slot, 8> slots_;
  size_t next_ = 0;
};

/// Copies to the host that become visible in finish(), once the stream has been waited for.
class ReturnBuffer {
 public:
  void download(void* host, const void* src, size_t bytes, cudaStream_t stream);
  /// Waits for the stream and hands the copies over.
  void finish(cudaStream_t stream);

 private:
  struct Pending {
    void* host;
    size_t offset;
    size_t bytes;
  };
  static constexpr size_t kBytes = size_t{1} << 20;
  PinnedMemory memory_;
  size_t used_ = 0;
  std::vector<Pending> pending_;
};

/// Weights: several threads fill pinned buffers, converting on the way, while the copies of others
/// run. Blocks until the host memory has been read; the copies are ordered by the stream.
class BulkUploader {
 public:
  /// elements of `from` size become `to` size; `convert` writes `count` of them starting at
  /// `first`.
  using Convert = std::function<void(size_t first, size_t count, char* to)>;
  void upload(void* dst, size_t elements, size_t element_bytes, cudaStream_t stream,
              const Convert& convert);

 private:
  static constexpr size_t kThreads = 8;
  static constexpr size_t kChunkBytes = size_t{4} << 20;
  struct Slot {
    PinnedMemory memory;
    EventHandle done;
  };
  std::array<Slot, 2 * kThreads> slots_;
};

}  // namespace treadle::cuda
