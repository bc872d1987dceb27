// From pageable host memory to the device by way of pinned buffers, and back.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
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

/// Copies to the host by way of pinned memory, in batches that are waited for one by one.
class ReturnBuffer {
 public:
  /// Adds a copy to the open batch.
  void download(void* host, const void* src, size_t bytes, cudaStream_t stream);
  /// Closes the open batch after all that is in the stream now. Batches count from 1.
  uint64_t mark(cudaStream_t stream);
  /// Waits for the batches up to `mark` and hands their copies over.
  void wait(uint64_t mark);

 private:
  struct Copy {
    void* host;
    size_t offset;
    size_t bytes;
  };
  struct Batch {
    PinnedMemory memory;
    size_t used = 0;
    std::vector<Copy> copies;
    EventHandle done;
  };
  static constexpr size_t kBytes = size_t{1} << 20;  // of one batch; what is larger blocks

  Batch& batch(uint64_t number) { return batches_[number % batches_.size()]; }

  std::array<Batch, 4> batches_;
  uint64_t open_ = 1;
  uint64_t arrived_ = 0;
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
