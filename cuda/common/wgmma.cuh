// Matrix products of a warpgroup (sm_90a): D[64][N] += A[64][16] B[16][N] in float. Accumulator
// fragments: PTX ISA, "wgmma.mma_async.m64nNk16": warp w of the group has rows 16 w .. 16 w + 15
// and each thread the elements d[4 i + (0, 1)] = row lane / 4, columns 8 i + 2 (lane % 4) + (0, 1),
// and d[4 i + (2, 3)] = the same of row + 8.
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace treadle::cuda {

/// Orders register and shared-memory writes before the products that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
/// Waits until at most `kPending` committed groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
/// Keeps the compiler from moving uses of accumulators across a wait.
template <int kCount>
__device__ __forceinline__ void wgmma_hold(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// Descriptor of a shared-memory operand with the 128-byte swizzle, in atoms of 8 rows x 128 bytes.
/// `stride`: bytes between atoms along the rows (8 rows further). `leading`: bytes between atoms
/// along the contiguous dimension; used only where that dimension is N (a transposed B).
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address, uint32_t leading,
                                                     uint32_t stride) {
  return uint64_t{(address & 0x3FFFFU) >> 4} | (uint64_t{leading >> 4} << 16) |
         (uint64_t{stride >> 4} << 32) | (uint64_t{1} << 62);
}

// Operands of the instructions: accumulators d[0] .. d[N / 2 - 1] and their names in the text, by
// their number. Names of eight begin at a literal number, since the text is made by the
// preprocessor.
#define TREADLE_WGMMA_D8(i)                                                           \
  "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]), "+f"(d[(i) + 4]), \
      "+f"(d[(i) + 5]), "+f"(d[(i) + 6]), "+f"(d[(i) + 7])
#define TREADLE_WGMMA_D_8 TREADLE_WGMMA_D8(0)
#define TREADLE_WGMMA_D_16 TREADLE_WGMMA_D_8, TREADLE_WGMMA_D8(8)
#define TREADLE_WGMMA_D_32 TREADLE_WGMMA_D_16, TREADLE_WGMMA_D8(16), TREADLE_WGMMA_D8(24)
#define TREADLE_WGMMA_D_40 TREADLE_WGMMA_D_32, TREADLE_WGMMA_D8(32)
#define TREADLE_WGMMA_D_48 TREADLE_WGMMA_D_40, TREADLE_WGMMA_D8(40)
#define TREADLE_WGMMA_D_64 TREADLE_WGMMA_D_48, TREADLE_WGMMA_D8(48), TREADLE_WGMMA_D8(56)
#define TREADLE_WGMMA_D_88 \
  TREADLE_WGMMA_D_64, TREADLE_WGMMA_D8(64), TREADLE_WGMMA_D8(72), TREADLE_WGMMA_D8(80)
#define TREADLE_WGMMA_D_96 TREADLE_WGMMA_D_88, TREADLE_WGMMA_D8(88)
#define TREADLE_WGMMA_D_112 TREADLE_WGMMA_D_96, TREADLE_WGMMA_D8(96), TREADLE_WGMMA_D8(104)
#define TREADLE_WGMMA_D_128 TREADLE_WGMMA_D_112, TREADLE_WGMMA_D8(112), TREADLE_WGMMA_D8(120)

#define TREADLE_WGMMA_TEXT_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define TREADLE_WGMMA_TEXT_16 TREADLE_WGMMA_TEXT_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define TREADLE_WGMMA_TEXT_32                \
  TREADLE_WGMMA_TEXT_16                      \
  ", %16, %17, %18, %19, %20, %21, %22, %23" \
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define TREADLE_WGMMA_TEXT_40 TREADLE_WGMMA_TEXT_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define TREADLE_WGMMA_TEXT_48 TREADLE_WGMMA_TEXT_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define TREADLE_WGMMA_TEXT_64                \
  TREADLE_WGMMA_TEXT_48                      \
  ", %48, %49, %50, %51, %52, %53, %54, %55" \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define TREADLE_WGMMA_TEXT_88                \
  TREADLE_WGMMA_TEXT_64                      \
  ", %64, %65, %66, %67, %68, %69, %70, %71" \
  ", %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87"
#define TREADLE_WGMMA_TEXT_96 TREADLE_WGMMA_TEXT_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define TREADLE_WGMMA_TEXT_112                   \
  TREADLE_WGMMA_TEXT_96                          \
  ", %96, %97, %98, %99, %100, %101, %102, %103" \
  ", %104, %105, %106, %107, %108, %109, %110, %111"
#define TREADLE_WGMMA_TEXT_128                       \
  TREADLE_WGMMA_TEXT_112                             \
  ", %112, %113, %114, %115, %116, %117, %118, %119" \
  ", %120, %121, %122, %123, %124, %125, %126, %127"

// The instruction in both types; the last arguments are the operands after the accumulators.
#define TREADLE_WGMMA(n, count, predicate, operands, ...)                                 \
  if constexpr (std::is_same_v<T, __half>) {                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " predicate                            \
                 ", 0;\n"                                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #n                                   \
                 "k16.f32.f16.f16 {" TREADLE_WGMMA_TEXT_##count "}, " operands ";\n}\n"   \
                 : TREADLE_WGMMA_D_##count                                                \
                 : __VA_ARGS__);                                                          \
  } else {                                                                                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " predicate                            \
                 ", 0;\n"                                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #n                                   \
                 "k16.f32.bf16.bf16 {" TREADLE_WGMMA_TEXT_##count "}, " operands ";\n}\n" \
                 : TREADLE_WGMMA_D_##count                                                \
                 : __VA_ARGS__);                                                          \
  }

// Members of Wgmma<T, n>; then the numbers of the operands that follow the accumulators.
#define TREADLE_WGMMA_SS(n, count, a0, b0, add0)                                                  \
  static __device__ __forceinline__ void ss(float(&d)[count], uint64_t a, uint64_t b, bool add) { \
    TREADLE_WGMMA(n, count, "%" #add0, "%" #a0 ", %" #b0 ", p, 1, 1, 0, 0", "l"(a), "l"(b),       \
                  "r"(static_cast<int>(add)))                                                     \
  }
#define TREADLE_WGMMA_RS(n, count, a0, a1, a2, a3, b0, transposed, add0)                           \
  template <int kTransposed = 1, bool kAdd = true>                                                 \
  static __device__ __forceinline__ void rs(float(&d)[count], const uint32_t(&a)[4], uint64_t b) { \
    TREADLE_WGMMA(n, count, "%" #add0,                                                             \
                  "{%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b0 ", p, 1, 1, %" #transposed,    \
                  "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kTransposed),            \
                  "n"(static_cast<int>(kAdd)))                                                     \
  }

/// ss: A [64][16] and B [N][16] in shared memory, both with K contiguous; `add` = false overwrites
/// D. rs: A in registers (fragments of mma.m16n8k16), B in shared memory: [16][N] with N
/// contiguous, or with kTransposed = 0 [N][16] with K contiguous; without kAdd D is overwritten.
template <class T, int kN>
struct Wgmma;

template <class T>
struct Wgmma<T, 16> {
  TREADLE_WGMMA_SS(16, 8, 8, 9, 10)
};

template <class T>
struct Wgmma<T, 32> {
  TREADLE_WGMMA_SS(32, 16, 16, 17, 18)
  TREADLE_WGMMA_RS(32, 16, 16, 17, 18, 19, 20, 21, 22)
};

template <class T>
struct Wgmma<T, 64> {
  TREADLE_WGMMA_SS(64, 32, 32, 33, 34)
  TREADLE_WGMMA_RS(64, 32, 32, 33, 34, 35, 36, 37, 38)
};

template <class T>
struct Wgmma<T, 80> {
  TREADLE_WGMMA_RS(80, 40, 40, 41, 42, 43, 44, 45, 46)
};

template <class T>
struct Wgmma<T, 96> {
  TREADLE_WGMMA_RS(96, 48, 48, 49, 50, 51, 52, 53, 54)
};

template <class T>
struct Wgmma<T, 128> {
  TREADLE_WGMMA_SS(128, 64, 64, 65, 66)
  TREADLE_WGMMA_RS(128, 64, 64, 65, 66, 67, 68, 69, 70)
};

template <class T>
struct Wgmma<T, 176> {
  TREADLE_WGMMA_SS(176, 88, 88, 89, 90)
};

template <class T>
struct Wgmma<T, 192> {
  TREADLE_WGMMA_SS(192, 96, 96, 97, 98)
  TREADLE_WGMMA_RS(192, 96, 96, 97, 98, 99, 100, 101, 102)
};

template <class T>
struct Wgmma<T, 224> {
  TREADLE_WGMMA_SS(224, 112, 112, 113, 114)
};

template <class T>
struct Wgmma<T, 256> {
  TREADLE_WGMMA_SS(256, 128, 128, 129, 130)
  TREADLE_WGMMA_RS(256, 128, 128, 129, 130, 131, 132, 133, 134)
};

#undef TREADLE_WGMMA
#undef TREADLE_WGMMA_RS
#undef TREADLE_WGMMA_SS
#undef TREADLE_WGMMA_D_8
#undef TREADLE_WGMMA_TEXT_8
#undef TREADLE_WGMMA_D_16
#undef TREADLE_WGMMA_TEXT_16
#undef TREADLE_WGMMA_D_32
#undef TREADLE_WGMMA_TEXT_32
#undef TREADLE_WGMMA_D_40
#undef TREADLE_WGMMA_TEXT_40
#undef TREADLE_WGMMA_D_48
#undef TREADLE_WGMMA_TEXT_48
#undef TREADLE_WGMMA_D_64
#undef TREADLE_WGMMA_TEXT_64
#undef TREADLE_WGMMA_D_88
#undef TREADLE_WGMMA_TEXT_88
#undef TREADLE_WGMMA_D_96
#undef TREADLE_WGMMA_TEXT_96
#undef TREADLE_WGMMA_D_112
#undef TREADLE_WGMMA_TEXT_112
#undef TREADLE_WGMMA_D_128
#undef TREADLE_WGMMA_TEXT_128
#undef TREADLE_WGMMA_D8

}  // namespace treadle::cuda
