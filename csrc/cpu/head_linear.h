// head_linear: out[m][h] = weight[h] * x[m][h], for float32 rows and a matrix of its own for each head, in float32,
// bfloat16 or float16.
#pragma once

#include "kernel.h"
#include "weight_format.h"

namespace quire {

// Heads are contiguous, rows `stride` elements apart.
struct HeadLinearArgs {
  float* out;               // [rows, heads, outputs]
  const float* x;           // [rows, heads, K]
  int64_t rows, out_stride, x_stride;
  int64_t num_heads, num_outputs;
  WeightView weight;        // the heads' matrices one below the other, each from a panel's first row on
};
QUIRE_KERNEL(head_linear, HeadLinearArgs)

}  // namespace quire
