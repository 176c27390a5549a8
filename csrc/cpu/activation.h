// silu_and_mul: out = silu(gate) * up, element by element.
#pragma once

#include "dtype.h"
#include "kernel.h"

namespace quire {

struct SiluAndMulArgs {
  void* out;          // [rows, dim] dtype
  const void* x;      // [rows, 2 * dim] dtype: gate, then up
  int64_t rows, dim;
  DType dtype;
};

QUIRE_KERNEL(silu_and_mul, SiluAndMulArgs)

}  // namespace quire
