// pointwise: sums, scaled, capped and reordered rows in float32: what comes between the layers of a model.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace quire {

enum class Pointwise : int {
  add = 0,       // x + y
  multiply = 1,  // x * factor
  soft_cap = 2,  // factor * tanh(x / factor)
  select = 3,    // element i is x[columns[i]]
};

struct PointwiseArgs {
  float* out;              // [rows, out_stride]
  const float* x;          // [rows, x_stride]
  const float* y;          // [rows, y_stride]; add alone reads it
  int64_t rows, dim, out_stride, x_stride, y_stride;
  const int64_t* columns;  // [dim]; select alone reads it
  float factor;
  Pointwise kind;
};

QUIRE_KERNEL(pointwise, PointwiseArgs)

}  // namespace quire
