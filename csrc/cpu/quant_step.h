// The exact int32 sums of a step, and how one joins an output's float32 sum. Every kernel of quantized products calls these, and
// so all of them round alike.
#pragma once

#include "dot.h"

namespace quire {
namespace QUIRE_LEVEL {

// Adds the products of four inputs of each row, `stride` bytes apart at `x`, with the weights of 32 outputs.
template <int kRows>
static inline void multiply(I32x16 (&sums)[kRows][2], Bytes w0, Bytes w1, const int8_t* x, int64_t stride) {
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    const Broadcast a = broadcast(x + r * stride);
    sums[r][0] = dot(sums[r][0], w0, a);
    sums[r][1] = dot(sums[r][1], w1, a);
  }
}

// int8; the weight's scale comes after the last step.
static inline F32x16 add_step(F32x16 total, I32x16 sum, F32x16 row_scale) { return fma(to_float(sum), row_scale, total); }

// int4 and the grouped formats, the sum without its zero point.
static inline F32x16 add_step(F32x16 total, I32x16 sum, F32x16 weight_scale, F32x16 row_scale) {
  return fma(to_float(sum) * weight_scale, row_scale, total);
}

// Weights with zero points. The sums and zero * sum of the row's values are below 2^24, so that the differences are exact in
// float32.
static inline F32x16 add_step(F32x16 total, I32x16 sum, F32x16 zero, F32x16 minus_row_sum, F32x16 weight_scale,
                              F32x16 row_scale) {
  return fma(fma(zero, minus_row_sum, to_float(sum)) * weight_scale, row_scale, total);
}

// Grouped formats with minima: each value of the row meets the minimum once.
static inline F32x16 add_step_with_minimum(F32x16 total, I32x16 sum, F32x16 weight_scale, F32x16 minimum, F32x16 row_sum,
                                           F32x16 row_scale) {
  return fma(fma(minimum, row_sum, to_float(sum) * weight_scale), row_scale, total);
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
