// layer_norm: out[r] = (x[r] - mean) / sqrt(variance + eps) * weight + bias, optionally of x + residual.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "kernel.h"

namespace quire {

// A row is `heads` runs of `dim` elements side by side, each normalised alone; with a residual heads is 1.
struct LayerNormArgs {
  void* out;               // [rows, heads, dim] dtype
  void* residual_out;      // [rows, dim] dtype: x + residual; unused without residual
  const void* x;           // [rows, heads, dim] dtype, rows x_stride elements apart
  const void* weight;      // [dim], or [heads, dim], weight_dtype
  const void* bias;        // the same, or null
  const void* residual;    // [rows, dim] dtype, or null
  int64_t rows, heads, dim, x_stride;
  int64_t weight_stride;   // from one head's weight to the next: 0 or dim
  float eps;
  DType dtype;
  DType weight_dtype;      // dtype itself, or float32
};

QUIRE_KERNEL(layer_norm, LayerNormArgs)

}  // namespace quire
