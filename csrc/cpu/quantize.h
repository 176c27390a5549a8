// quantize: float32 rows to int8 for quant_linear or to bfloat16 for bf16_linear and float8_linear, after a norm if there is one.
#pragma once

#include "linear.h"

namespace quire {

struct QuantizeArgs {
  const float* x;            // [rows, x_stride], `dim` of them meant
  int64_t rows, x_stride, dim;
  int64_t activation_group;  // inputs that share a scale; dim for all of a row
  int32_t multiplier;        // of the sums in out.offsets
  bool half_scales;          // scales are rounded to float16
  QuantizedRows out;
  bf16* narrow_out;          // [rows, narrow_stride], an even number of them written; then `out` and the two above mean nothing
  int64_t narrow_stride;
  // The norm; null without. residual, residual_out: dense [rows, dim], as in rms_norm.
  const float* norm_weight;  // [dim]
  const float* norm_bias;    // [dim], or null
  bool is_layer_norm;        // else it is an RMS norm
  const float* residual;
  float* residual_out;
  float eps;
};
QUIRE_KERNEL(quantize, QuantizeArgs)

}  // namespace quire
