// The functions that follow a product of a feed-forward block, on sixteen lanes; quire/ops/activations.py defines them.
#pragma once

#include "linear.h"
#include "simd.h"

namespace quire {
namespace QUIRE_LEVEL {

// erfc(z) for z >= 0, within 1.5e-7: a polynomial in 1 / (1 + 0.3275911 z) times e^(-z^2) (Abramowitz and Stegun 1964, 7.1.26).
static inline F32x16 erfc_of_positive(F32x16 z) {
  const F32x16 t = splat(1.0f) / fma(z, splat(0.3275911f), splat(1.0f));
  F32x16 p = splat(1.061405429f);
  p = fma(p, t, splat(-1.453152027f));
  p = fma(p, t, splat(1.421413741f));
  p = fma(p, t, splat(-0.284496736f));
  p = fma(p, t, splat(0.254829592f));
  return p * t * exp(splat(0.0f) - z * z);
}

// a times the probability that a normal number is below a (1606.08415); the tail is computed as such, not as 1 less something.
static inline F32x16 gelu(F32x16 a) {
  const F32x16 tail = splat(0.5f) * erfc_of_positive(abs(a) * splat(0.70710678f));
  return a * (zero_where_below(splat(1.0f) - tail - tail, a, splat(0.0f)) + tail);
}

// The same with the tanh of sqrt(2 / pi) (a + 0.044715 a^3) for the error function, written as the sigmoid that it is.
static inline F32x16 gelu_tanh(F32x16 a) {
  const F32x16 twice = a * fma(a * a, splat(0.071354816f), splat(1.59576912f));
  return a / (splat(1.0f) + exp(splat(0.0f) - twice));
}

static inline F32x16 quick_gelu(F32x16 a) { return a / (splat(1.0f) + exp(splat(-1.702f) * a)); }

// Of NaN it is NaN: max gives its second operand then.
static inline F32x16 relu(F32x16 a) { return max(splat(0.0f), a); }

// Never inlined: a tile has this at the end of each of its rows.
[[maybe_unused]] __attribute__((noinline)) static F32x16 activate(Activation activation, F32x16 a) {
  switch (activation) {
    case Activation::none: return a;
    case Activation::silu: return silu(a);
    case Activation::gelu: return gelu(a);
    case Activation::gelu_tanh: return gelu_tanh(a);
    case Activation::relu: return relu(a);
    case Activation::quick_gelu: return quick_gelu(a);
  }
  return a;
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
