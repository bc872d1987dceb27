#include "common/staging.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

namespace treadle::cuda {

void StagingRing::upload(void* dst, size_t bytes, cudaStream_t stream,
                         const std::function<void(char*)>& fill) {
  if (bytes == 0) return;
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  if (slot.done.get() == nullptr) {
    slot.done = make_event();
  } else {
    check(cudaEventSynchronize(slot.done.get()), "wait for an upload");
  }
  if (slot.size < bytes) {
    const size_t size = std::max(bytes + bytes / 2, size_t{64} << 10);
    slot.memory = make_pinned_memory(size);
    slot.size = size;
  }
  char* pinned = static_cast<char*>(slot.memory.get());
  fill(pinned);
  check(cudaMemcpyAsync(dst, pinned, bytes, cudaMemcpyHostToDevice, stream), "upload");
  check(cudaEventRecord(slot.done.get(), stream), "record an upload");
}

void StagingRing::upload(void* dst, const void* host, size_t bytes, cudaStream_t stream) {
  upload(dst, bytes, stream, [&](char* to) { std::memcpy(to, host, bytes); });
}

void ReturnBuffer::download(void* host, const void* src, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  Batch& open = batch(open_);
  const size_t size = (bytes + 63) / 64 * 64;
  if (open.used + size > kBytes) {
    check(cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, stream), "download");
    return;
  }
  if (open.memory.get() == nullptr) open.memory = make_pinned_memory(kBytes);
  check(cudaMemcpyAsync(static_cast<char*>(open.memory.get()) + open.used, src, bytes,
                        cudaMemcpyDeviceToHost, stream),
        "download");
  open.copies.push_back({host, open.used, bytes});
  open.used += size;
}

uint64_t ReturnBuffer::mark(cudaStream_t stream) {
  Batch& open = batch(open_);
  if (open.done.get() == nullptr) open.done = make_event();
  check(cudaEventRecord(open.done.get(), stream), "mark the stream");
  const uint64_t closed = open_++;
  if (open_ - arrived_ > batches_.size()) wait(open_ - batches_.size());
  return closed;
}

void ReturnBuffer::wait(uint64_t mark) {
  while (arrived_ < mark) {
    Batch& next = batch(arrived_ + 1);
    check(cudaEventSynchronize(next.done.get()), "wait for the device");
    for (const Copy& copy : next.copies) {
      std::memcpy(copy.host, static_cast<const char*>(next.memory.get()) + copy.offset, copy.bytes);
    }
    next.copies.clear();
    next.used = 0;
    ++arrived_;
  }
}

void BulkUploader::upload(void* dst, size_t elements, size_t element_bytes, cudaStream_t stream,
                          const Convert& convert) {
  const size_t chunk = kChunkBytes / element_bytes;
  const size_t chunks = (elements + chunk - 1) / chunk;
  const size_t threads = std::min(
      {chunks, kThreads, static_cast<size_t>(std::max(1U, std::thread::hardware_concurrency()))});
  int device = 0;
  check(cudaGetDevice(&device), "get device");
  std::mutex mutex;
  std::exception_ptr failure;

  // Thread i takes chunks i, i + threads, ... and has two buffers: one is filled while the other's
  // copy runs.
  const auto work = [&](size_t thread) {
    try {
      check(cudaSetDevice(device), "choose device");
      for (size_t c = thread, turn = 0; c < chunks; c += threads, ++turn) {
        Slot& slot = slots_[2 * thread + turn % 2];
        if (slot.done.get() == nullptr) {
          slot.memory = make_pinned_memory(kChunkBytes);
          slot.done = make_event();
        } else {
          check(cudaEventSynchronize(slot.done.get()), "wait for an upload");
        }
        const size_t first = c * chunk;
        const size_t count = std::min(chunk, elements - first);
        convert(first, count, static_cast<char*>(slot.memory.get()));
        check(cudaMemcpyAsync(static_cast<char*>(dst) + first * element_bytes, slot.memory.get(),
                              count * element_bytes, cudaMemcpyHostToDevice, stream),
              "upload weights");
        check(cudaEventRecord(slot.done.get(), stream), "record an upload");
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < threads; ++i) helpers.emplace_back(work, i);
  if (threads > 0) work(0);
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace treadle::cuda
