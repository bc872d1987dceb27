#include "sampler/pack_rows.h"

#include <cstdint>
#include <cstring>

namespace treadle::sampler {
namespace {

constexpr size_t aligned(size_t bytes) { return (bytes + 15) / 16 * 16; }

template <class T>
size_t array_bytes(const T* /*array*/, int32_t count) {
  return aligned(static_cast<size_t>(count) * sizeof(T));
}

ops::SampleRow without_unread_history(ops::SampleRow row) {
  if (row.forced_token >= 0) {
    row.history_len = row.output_begin = row.bias_count = row.barred_count = 0;
  } else if (row.repetition_penalty == 1.0F) {
    const bool reads_output = row.presence_penalty != 0.0F || row.frequency_penalty != 0.0F;
    const int32_t unread = reads_output ? row.output_begin : row.history_len;
    row.history += unread;
    row.history_len -= unread;
    row.output_begin = 0;
  }
  return row;
}

}  // namespace

size_t packed_bytes(std::span<const ops::SampleRow> rows) {
  size_t bytes = aligned(rows.size_bytes());
  for (const ops::SampleRow& given : rows) {
    const ops::SampleRow row = without_unread_history(given);
    bytes += array_bytes(row.history, row.history_len) + array_bytes(row.bias, row.bias_count) +
             array_bytes(row.barred, row.barred_count);
  }
  return bytes;
}

void pack_rows(std::span<const ops::SampleRow> rows, char* block, const void* base) {
  size_t used = aligned(rows.size_bytes());
  const auto take = [&]<class T>(const T*& array, int32_t count) {
    if (count == 0) {
      array = nullptr;
      return;
    }
    std::memcpy(block + used, array, static_cast<size_t>(count) * sizeof(T));
    array = reinterpret_cast<const T*>(static_cast<const char*>(base) + used);
    used += array_bytes(array, count);
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    ops::SampleRow row = without_unread_history(rows[i]);
    take(row.history, row.history_len);
    take(row.bias, row.bias_count);
    take(row.barred, row.barred_count);
    std::memcpy(block + i * sizeof row, &row, sizeof row);
  }
}

}  // namespace treadle::sampler
