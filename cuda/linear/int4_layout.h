// 4-bit weights in the order in which kernels read them.
//
// W [N][K] is cut into tiles of 16 rows x 64 columns, padded with zeros. Of a tile each of the 32
// lanes of a warp has 16 bytes, next to each other: four words, one for every 16 columns, that hold
// the eight numbers of the lane's A fragment of mma.m16n8k16 (and of wgmma.m64nTk16 with A in
// registers, of which four tiles are the rows). With r = lane / 4 and c = lane % 4 * 2, the nibbles
// of word j from the lowest up are
//
//   (r, c) (r + 8, c) (r, c + 8) (r + 8, c + 8) (r, c + 1) (r + 8, c + 1) (r, c + 9) (r + 8, c + 9)
//
// counted from row 16 * tile and column 64 * k_tile + 16 * j: a shift and a mask give a pair of
// neighbours in the low and the high half of a register (linear/int4_dequant.cuh).
//
// A group's scale and zero are one word for each row, see group_word(), and rows r and r + 8 of a
// tile are neighbours, so that 8 bytes serve a lane.
//
// With silu_mul, rows 0 to 7 of a tile are gates and rows 8 to 15 the ups of the same eight columns
// of y: one thread has both. Where groups are scattered (GPTQ's desc_act), the columns are stored
// in the order of their groups, and LinearWeight::group_of says which column of x is the k-th.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "ops/types.h"

namespace treadle::cuda::int4 {

constexpr int kTileRows = 16;
constexpr int kTileColumns = 64;
constexpr int kLanes = 32;
constexpr int kLaneBytes = 16;  // of a tile
constexpr int kTileBytes = kLanes * kLaneBytes;
constexpr int kPairs = kTileRows / 2;  // group words of a tile and group, in twos
constexpr int kGroupBytes = kTileRows * 4;
constexpr int kGroupMultiple = 32;  // a group's least size, unless there is only one

/// Sizes of a packed weight: uint4 q[tiles][k_tiles][32], then uint2 words[tiles][groups][8].
struct Layout {
  int n = 0;  // rows of W
  int k = 0;  // columns
  int group_size = 0;
  bool gated = false;
  int tiles = 0;
  int k_tiles = 0;
  int groups = 0;

  constexpr size_t q_bytes() const { return size_t(tiles) * size_t(k_tiles) * kTileBytes; }
  constexpr size_t bytes() const {
    return q_bytes() + size_t(tiles) * size_t(groups) * kGroupBytes;
  }
  /// Columns of y.
  constexpr int columns() const { return gated ? n / 2 : n; }
  /// The row of W that is row r of a tile, or -1 for padding.
  constexpr int source_row(int tile, int r) const {
    if (!gated) return tile * kTileRows + r < n ? tile * kTileRows + r : -1;
    const int column = tile * (kTileRows / 2) + r % 8;
    if (column >= columns()) return -1;
    return r < 8 ? column : columns() + column;
  }
  /// Columns past the end count to the last group.
  constexpr int group_of(int column) const {
    const int group = column / group_size;
    return group < groups ? group : groups - 1;
  }
};

constexpr Layout layout_of(int64_t n, int64_t k, int64_t group_size, bool gated) {
  Layout l;
  l.n = static_cast<int>(n);
  l.k = static_cast<int>(k);
  l.group_size = static_cast<int>(group_size);
  l.gated = gated;
  const int rows = gated ? 2 * ((l.n / 2 + 7) / 8 * 8) : l.n;
  l.tiles = (rows + kTileRows - 1) / kTileRows;
  l.k_tiles = (l.k + kTileColumns - 1) / kTileColumns;
  l.groups = l.k / l.group_size;
  return l;
}
constexpr Layout layout_of(const ops::LinearWeight& w, bool gated) {
  return layout_of(w.out_features, w.in_features, w.group_size, gated);
}

/// Where the groups' words of packed weights begin: [tiles][groups][8][2].
inline const uint32_t* words_of(const Layout& layout, const void* packed) {
  return reinterpret_cast<const uint32_t*>(static_cast<const char*>(packed) + layout.q_bytes());
}

/// Whether there is a layout for groups of this size.
constexpr bool supports_groups(int64_t k, int64_t group_size) {
  return group_size > 0 && k > 0 && k % 8 == 0 &&
         (group_size == k || (k % group_size == 0 && group_size >= kGroupMultiple &&
                              std::has_single_bit(static_cast<uint64_t>(group_size))));
}

/// scale rounded to 24 bits, whose lowest 8 bits make room for the zero: exact for what checkpoints
/// store in 16 bits, and one word for float16 and bfloat16 activations alike.
constexpr uint32_t group_word(float scale, uint8_t zero) {
  const auto bits = std::bit_cast<uint32_t>(scale);
  return ((bits + 0x7fU + (bits >> 8 & 1U)) & ~0xffU) | zero;
}
constexpr float scale_of(uint32_t word) { return std::bit_cast<float>(word & ~0xffU); }
constexpr int zero_of(uint32_t word) { return static_cast<int>(word & 0xffU); }

}  // namespace treadle::cuda::int4
