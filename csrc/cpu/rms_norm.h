// rms_norm: out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight, optionally of x + residual.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "kernel.h"

namespace quire {

// Dense row-major matrices of `rows` x `dim`; `weight` has `dim` elements.
struct RmsNormArgs {
  void* out;               // [rows, dim] dtype
  void* residual_out;      // [rows, dim] dtype: x + residual; unused without residual
  const void* x;           // [rows, dim] dtype
  const void* weight;      // [dim] weight_dtype
  const void* residual;    // [rows, dim] dtype, or null
  int64_t rows, dim;
  float eps;
  DType dtype;
  DType weight_dtype;      // dtype itself, or float32
};

QUIRE_KERNEL(rms_norm, RmsNormArgs)

}  // namespace quire
