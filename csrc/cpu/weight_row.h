// A row of a checkpoint's matrix: widened to float32, and rounded to int8 as quire.ops.quantize.quantize_int8 says, bit for bit.
#pragma once

#include "dot.h"
#include "dtype.h"

namespace quire {
namespace QUIRE_LEVEL {

template <typename T>
static inline void widen_run(float* out, const T* x, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i));
  if (i < n) store_first(out + i, load_first(x + i, n - i), n - i);
}

// out[i] = element `first` + i of a tensor of `dtype`.
static inline void widen(float* out, const void* tensor, DType dtype, int64_t first, int64_t n) {
  switch (dtype) {
    case DType::float32: return widen_run(out, static_cast<const float*>(tensor) + first, n);
    case DType::bfloat16: return widen_run(out, static_cast<const bf16*>(tensor) + first, n);
    case DType::float16: return widen_run(out, static_cast<const f16*>(tensor) + first, n);
  }
}

// values[i] = x[i] / scale rounded, in [-127, 127]; returns the scale, absmax / 127.
static inline float round_to_int8(int8_t* values, const float* x, int64_t n) {
  F32x16 top = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) top = max(top, abs(load(x + i)));
  if (i < n) top = max(top, abs(load_first(x + i, n - i)));
  const float absmax = reduce_max(top);
  const F32x16 factor = splat(absmax < 0x1p-120f ? 0.0f : 127.0f / absmax);
  for (i = 0; i + kLanes <= n; i += kLanes) store_bytes(values + i, load(x + i) * factor);
  if (i < n) {
    int8_t run[kLanes];
    store_bytes(run, load_first(x + i, n - i) * factor);
    std::memcpy(values + i, run, static_cast<size_t>(n - i));
  }
  return absmax / 127.0f;
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
