// pointwise: sums, scaled, gated and capped rows in float32: what a model writes between its layers.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace quire {

enum class Pointwise : int {
  add = 0,       // x + y
  multiply = 1,  // x * factor
  soft_cap = 2,  // factor * tanh(x / factor)
  sigmoid_gate = 3,  // x * sigmoid(y), y one number for all of a row
};

struct PointwiseArgs {
  float* out;              // [rows, out_stride]
  const float* x;          // [rows, x_stride]
  const float* y;          // [rows, y_stride] of add; [rows], y_stride apart, of sigmoid_gate; null of the others
  int64_t rows, dim, out_stride, x_stride, y_stride;
  float factor;
  Pointwise kind;
};

QUIRE_KERNEL(pointwise, PointwiseArgs)

}  // namespace quire
