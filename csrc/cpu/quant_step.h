// How the exact int32 sum of a step joins an output's float32 sum. Every kernel of quantized products calls these, and so
// all of them round alike.
#pragma once

#include "dot.h"

namespace quire {
namespace QUIRE_LEVEL {

// int8; the weight's scale comes after the last step.
static inline F32x16 add_step(F32x16 total, I32x16 sum, F32x16 row_scale) { return fma(to_float(sum), row_scale, total); }

// int4, the sum without its zero point.
static inline F32x16 add_step(F32x16 total, I32x16 sum, F32x16 weight_scale, F32x16 row_scale) {
  return fma(to_float(sum) * weight_scale, row_scale, total);
}

// int4 with zero points. The sums and zero * sum of the row's values are below 2^24, so that the differences are exact in
// float32.
static inline F32x16 add_step(F32x16 total, I32x16 sum, F32x16 zero, F32x16 minus_row_sum, F32x16 weight_scale,
                              F32x16 row_scale) {
  return fma(fma(zero, minus_row_sum, to_float(sum)) * weight_scale, row_scale, total);
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
