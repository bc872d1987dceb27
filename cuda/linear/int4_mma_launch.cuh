// Launch of the kernel of int4_mma.h for one element type.
#pragma once

#include <bit>

#include "common/dispatch.h"
#include "linear/int4_mma_kernel.cuh"

namespace treadle::cuda::int4::mma {

template <class T, int kTokens>
void run(const ops::LinearParams& p, const Plan& plan, const stream::Parts& parts,
         cudaStream_t stream) {
  const ops::LinearWeight& w = *p.weight;
  Args a{};
  a.packed = static_cast<const uint8_t*>(w.data);
  a.x = p.x;
  a.layout = layout_of(w, p.silu_mul);
  a.out = {.y = p.y,
           .bias = w.bias,
           .n = a.layout.n,
           .columns = a.layout.columns(),
           .m = p.num_tokens,
           .add = p.add};
  a.plan = plan;
  a.parts = parts;
  // Groups have 32, 64, 128, ... columns, or all.
  a.group_shift =
      a.layout.groups > 1 ? std::countr_zero(static_cast<unsigned>(a.layout.group_size)) : 31;
  a.gated = p.silu_mul;
  a.float_output = p.float_output;
  auto* kernel = int4_mma_kernel<T, kTokens>;
  const int shared = plan.stages * stage_bytes(kTokens);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "int4_mma: shared memory");
  launch("int4_mma", kernel,
         dependent_launch(static_cast<unsigned>(plan.blocks), Shape<kTokens>::kThreads, stream,
                          static_cast<size_t>(shared)),
         a);
}

template <class T>
void dispatch(const ops::LinearParams& p, const Plan& plan, const stream::Parts& parts,
              cudaStream_t stream) {
  if (plan.tokens == 32) return run<T, 32>(p, plan, parts, stream);
  if (plan.tokens == 48) return run<T, 48>(p, plan, parts, stream);
  if (plan.tokens == 64) return run<T, 64>(p, plan, parts, stream);
  if (plan.tokens == 96) return run<T, 96>(p, plan, parts, stream);
  run<T, 128>(p, plan, parts, stream);
}

}  // namespace treadle::cuda::int4::mma
