#include "loader/int4_numbers.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

namespace treadle::loader {
namespace {

constexpr int64_t kPack = 8;
constexpr int64_t kLine = 16;  // words of a cache line
constexpr int64_t kThreads = 8;
constexpr int64_t kThreadWords = int64_t{1} << 16;  // below this a thread is not worth its start

using Words = std::array<uint32_t, kLine>;

/// Calls body(first, last) for parts of [0, count), whose numbers are `words` words altogether.
void in_parallel(int64_t count, int64_t words,
                 const std::function<void(int64_t first, int64_t last)>& body) {
  const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t threads =
      std::clamp<int64_t>(std::min({cores, kThreads, words / kThreadWords, count}), 1, kThreads);
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < threads; ++i) {
    helpers.emplace_back(body, count * i / threads, count * (i + 1) / threads);
  }
  body(0, count / threads);
  for (std::thread& helper : helpers) helper.join();
}

void load(const std::byte* from, int64_t index, int64_t count, Words& words) {
  std::memcpy(words.data(), from + index * 4, static_cast<size_t>(count) * 4);
}

void store(uint8_t* to, int64_t index, uint32_t word) { std::memcpy(to + index * 4, &word, 4); }

/// Of eight words with eight numbers each: number i of word j becomes number j of word i. Sixteen
/// such squares at a time.
void transpose(std::array<Words, kPack>& w) {
  const auto exchange = [&w](size_t distance, uint32_t mask, unsigned shift) {
    for (size_t a = 0; a < kPack; ++a) {
      if ((a & distance) != 0) continue;
      Words& low = w[a];
      Words& high = w[a + distance];
      for (size_t i = 0; i < kLine; ++i) {
        const uint32_t differ = (low[i] >> shift ^ high[i]) & mask;
        high[i] ^= differ;
        low[i] ^= differ << shift;
      }
    }
  };
  exchange(4, 0x0000ffffU, 16);
  exchange(2, 0x00ff00ffU, 8);
  exchange(1, 0x0f0f0f0fU, 4);
}

}  // namespace

void gptq_numbers(const std::byte* words, int64_t n, int64_t k, uint8_t* out) {
  const int64_t row = k / kPack;  // words
  const int64_t blocks = (n + kLine - 1) / kLine;
  in_parallel(blocks, n * row, [=](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kLine;
      const int64_t count = std::min(kLine, n - begin);
      Words line{};
      for (int64_t i = 0; i < row; ++i) {
        load(words, i * n + begin, count, line);
        for (int64_t j = 0; j < count; ++j) {
          store(out, (begin + j) * row + i, line[static_cast<size_t>(j)]);
        }
      }
    }
  });
}

void awq_numbers(const std::byte* words, int64_t n, int64_t k, uint8_t* out) {
  constexpr std::array<int64_t, kPack> kRow = {0, 2, 4, 6, 1, 3, 5, 7};
  const int64_t row = k / kPack;     // words of out
  const int64_t stride = n / kPack;  // words of the checkpoint's rows
  const int64_t blocks = (stride + kLine - 1) / kLine;
  in_parallel(blocks, n * row, [=](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kLine;
      const int64_t count = std::min(kLine, stride - begin);
      std::array<Words, kPack> square{};
      for (int64_t i = 0; i < row; ++i) {
        for (int64_t j = 0; j < kPack; ++j) {
          load(words, (i * kPack + j) * stride + begin, count, square[static_cast<size_t>(j)]);
        }
        transpose(square);
        for (int64_t j = 0; j < count; ++j) {
          for (size_t r = 0; r < kPack; ++r) {
            store(out, ((begin + j) * kPack + kRow[r]) * row + i,
                  square[r][static_cast<size_t>(j)]);
          }
        }
      }
    }
  });
}

}  // namespace treadle::loader
