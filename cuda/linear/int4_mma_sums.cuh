// What becomes of the sums of the kernel of int4_mma.h: they are stored, exchanged between the
// thread blocks that share a tile, or handed to one of them.
#pragma once

#include "common/ptx.cuh"
#include "linear/int4_mma_shape.cuh"

namespace treadle::cuda::int4::mma {

/// Where a thread block leaves a piece of its sums: those of 16 rows and eight tokens.
template <class S>
__device__ __forceinline__ float4* place_of(const Args& a, int block, int piece) {
  return reinterpret_cast<float4*>(a.parts.sums) +
         (size_t(block) * S::kPieces + piece) * S::kThreads + threadIdx.x;
}

__device__ __forceinline__ void add(float4 v, float (&sums)[4]) {
  sums[0] += v.x;
  sums[1] += v.y;
  sums[2] += v.z;
  sums[3] += v.w;
}

/// The largest divisor of n that is not above `most`.
constexpr int batch(int n, int most) {
  while (n % most != 0) --most;
  return most;
}

/// The sums of a tile of which two thread blocks or more have a part of the steps: the one that
/// began it adds up all.
template <class S>
class Handover {
 public:
  __device__ __forceinline__ Handover(const Args& a, int tile)
      : a_(a), head_(tile * a.plan.steps / a.plan.each) {}

  /// Of a thread block that did not begin the tile.
  __device__ __forceinline__ void leave(const float (&acc)[S::kTiles][S::kVectors][4]) const {
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < S::kVectors; ++i) {
        __stcg(place(blockIdx.x, t * S::kVectors + i),
               make_float4(acc[t][i][0], acc[t][i][1], acc[t][i][2], acc[t][i][3]));
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(a_.parts.counters + head_, 1);
    }
  }
  /// Waits for those of thread blocks up to `last`, and adds them in the order of K.
  __device__ __forceinline__ void add_up(int last, float (&acc)[S::kTiles][S::kVectors][4]) const {
    if (threadIdx.x == 0) {
      int* counter = a_.parts.counters + head_;
      wait_for_count(counter, last - head_);
      *counter = 0;
    }
    __syncthreads();
    constexpr int kBatch = batch(S::kPieces, 16);  // whose loads wait for memory together
    for (int block = head_ + 1; block <= last; ++block) {
#pragma unroll
      for (int begin = 0; begin < S::kPieces; begin += kBatch) {
        float4 v[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) v[i] = __ldcg(place(block, begin + i));
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          add(v[i], acc[(begin + i) / S::kVectors][(begin + i) % S::kVectors]);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ float4* place(int block, int piece) const {
    return place_of<S>(a_, block, piece);
  }

  const Args& a_;
  int head_;
};

/// Stores sums of the warp's 16 rows number t of a tile and of the tokens from its `first` eight
/// on.
template <class T, class S, int kCount>
__device__ __forceinline__ void store(const Args& a, int tile, int t, int first,
                                      const float (&sums)[kCount][4]) {
  const int row_tile = tile / a.plan.token_tiles;
  const int vector = (tile - row_tile * a.plan.token_tiles) * S::kVectors + first;
  const int row = row_tile * kRows + (threadIdx.x / 32 * S::kTiles + t) * kTileRows;
  if (a.gated) {
    stream::store_chunks<T, T, true>(a.out, sums, row, vector, 1);
  } else if (a.float_output) {
    stream::store_chunks<T, float, false>(a.out, sums, row, vector, 1);
  } else {
    stream::store_chunks<T, T, false>(a.out, sums, row, vector, 1);
  }
}

/// Adds up, of the sums that the thread blocks of a tile have left, kOwn pieces, and stores them.
template <class T, class S, int kOwn>
__device__ __forceinline__ void store_share(const Args& a, int tile, int part) {
  static_assert(S::kVectors % kOwn == 0 || kOwn % S::kVectors == 0);
  constexpr int kParts = kOwn < 16 ? 16 / kOwn : 1;  // whose loads wait for memory together
  const int first = part * kOwn;
  if (first >= S::kPieces) return;
  const int head = tile * a.plan.split;
  float sums[kOwn][4] = {};
#pragma unroll 1
  for (int begin = 0; begin < a.plan.split; begin += kParts) {
    float4 v[kParts][kOwn];
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        v[j][i] = begin + j < a.plan.split ? __ldcg(place_of<S>(a, head + begin + j, first + i))
                                           : make_float4(0.0F, 0.0F, 0.0F, 0.0F);
      }
    }
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) add(v[j][i], sums[i]);
    }
  }
  constexpr int kTogether = kOwn < S::kVectors ? kOwn : S::kVectors;
#pragma unroll
  for (int i = 0; i < kOwn; i += kTogether) {
    float own[kTogether][4];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) own[j][e] = sums[i + j][e];
    }
    store<T, S>(a, tile, (first + i) / S::kVectors, (first + i) % S::kVectors, own);
  }
}

/// Of a thread block that shares a tile with others that all end now: each stores some pieces.
template <class T, class S>
__device__ __forceinline__ void exchange(const Args& a, int tile,
                                         const float (&acc)[S::kTiles][S::kVectors][4]) {
  const int part = static_cast<int>(blockIdx.x) - tile * a.plan.split;
  int* counter = a.parts.counters + tile;
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < S::kVectors; ++i) {
      __stcg(place_of<S>(a, blockIdx.x, t * S::kVectors + i),
             make_float4(acc[t][i][0], acc[t][i][1], acc[t][i][2], acc[t][i][3]));
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1);
    wait_for_count(counter, a.plan.split);
  }
  __syncthreads();
  constexpr int kPieces = S::kPieces;
  if (a.plan.split < 4) {
    store_share<T, S, kPieces / 2>(a, tile, part);
  } else if (a.plan.split < 8) {
    store_share<T, S, kPieces / 4>(a, tile, part);
  } else {
    store_share<T, S, (kPieces + 7) / 8>(a, tile, part);
  }
  // The counter says first who has left sums, then who has read them; the last one resets it.
  __syncthreads();
  if (threadIdx.x == 0 && atomicAdd(counter, 1) == 2 * a.plan.split - 1) *counter = 0;
}

/// Stores what a thread block has of steps [begin, end) of a tile, or leaves it to another one.
template <class T, class S>
__device__ __forceinline__ void finish(const Args& a, int tile, int begin, int end,
                                       float (&acc)[S::kTiles][S::kVectors][4]) {
  if (a.plan.split > 1) return exchange<T, S>(a, tile, acc);
  const Handover<S> handover(a, tile);
  if (begin > 0) return handover.leave(acc);
  if (end < a.plan.steps) handover.add_up(((tile + 1) * a.plan.steps - 1) / a.plan.each, acc);
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) store<T, S>(a, tile, t, 0, acc[t]);
}

}  // namespace treadle::cuda::int4::mma
