// exp and silu on vectors.
#pragma once

namespace treadle::ops::cpu {

/// e^x to 1 ulp for x in [-87.3, 88.3]; exactly 1 at 0, 0 below (softmax relies on both), and
/// e^88.3 above. NaN stays NaN. x = n ln 2 + r with |r| <= ln(2) / 2, e^x = 2^n e^r; e^r by a
/// minimax polynomial of (e^r - 1 - r) / r^2, error below 2^-28.
template <class V>
inline typename V::F exp(typename V::F x) {
  using F = typename V::F;
  const F clamped = V::max(V::set1(-87.3F), V::min(V::set1(88.3F), x));
  const F n = V::round(V::mul(clamped, V::set1(1.44269504F)));
  // ln 2 in two parts: n * 0.693359375 is exact.
  F r = V::fma(n, V::set1(-0.693359375F), clamped);
  r = V::fma(n, V::set1(2.12194440e-4F), r);
  F p = V::set1(0.0013814539415761828F);
  p = V::fma(p, r, V::set1(0.00836874544620514F));
  p = V::fma(p, r, V::set1(0.04166838899254799F));
  p = V::fma(p, r, V::set1(0.1666652113199234F));
  p = V::fma(p, r, V::set1(0.4999999403953552F));
  p = V::add(V::fma(V::mul(r, r), p, r), V::set1(1.0F));
  return V::zero_below(V::mul(p, V::pow2(n)), x, -87.3F);
}

/// x / (1 + e^-x)
template <class V>
inline typename V::F silu(typename V::F x) {
  const auto one = V::set1(1.0F);
  return V::div(x, V::add(one, exp<V>(V::sub(V::zero(), x))));
}

}  // namespace treadle::ops::cpu
