// quantize_weight: rows of a checkpoint's matrix to integers and scales in plain order, for weights that are packed later.
#pragma once

#include "dtype.h"
#include "kernel.h"
#include "weight_format.h"

namespace quire {

struct QuantizeWeightArgs {
  const void* floats;        // [rows, row_stride] of `dtype`, num_inputs of them meant
  DType dtype;
  int64_t rows, row_stride, num_inputs;
  int64_t group;             // int4: inputs that share a scale
  uint8_t* values;           // [rows, num_inputs]: int8, or int4 as 0 to 15
  void* scales;              // int8: float32 [rows]; int4: float16 [rows, num_inputs / group]
  WeightKind kind;
};
QUIRE_KERNEL(quantize_weight, QuantizeWeightArgs)

}  // namespace quire
