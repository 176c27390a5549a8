// simd_case: every function of simd.h and activate.h on given numbers, for the self-test program. No part of the extension.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "kernel.h"

namespace quire {

struct SimdCaseArgs {
  const float* a;            // [count * 16]
  const float* b;            // [count * 16]
  const float* c;            // [count * 16]
  float* floats;             // [count, kSimdCaseFloats, 16]
  bf16* bf16s;               // [count, 16]: a, and the same widened again goes to floats
  f16* f16s;                 // [count, 16]
  int64_t count;
};
constexpr int64_t kSimdCaseFloats = 25;

QUIRE_KERNEL(simd_case, SimdCaseArgs)

}  // namespace quire
