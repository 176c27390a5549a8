// rms_norm: out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight, optionally of x + residual.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "kernel.h"

namespace quire {

// A row is `heads` runs of `dim` elements side by side, each normalised alone; with a residual heads is 1.
struct RmsNormArgs {
  void* out;               // [rows, heads, dim] dtype
  void* residual_out;      // [rows, dim] dtype: x + residual; unused without residual
  const void* x;           // [rows, heads, dim] dtype, rows x_stride elements apart
  const void* weight;      // [dim] weight_dtype
  const void* residual;    // [rows, dim] dtype, or null
  int64_t rows, heads, dim, x_stride;
  float eps;
  DType dtype;
  DType weight_dtype;      // dtype itself, or float32
};

QUIRE_KERNEL(rms_norm, RmsNormArgs)

}  // namespace quire
