// A row of a checkpoint's matrix: widened to float32, and rounded to int8 and float8 as quire.ops.quantize says, bit for bit.
#pragma once

#include "dot.h"
#include "dtype.h"
#include "float8.h"

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

static inline float largest_size(const float* x, int64_t n) {
  F32x16 top = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) top = max(top, abs(load(x + i)));
  if (i < n) top = max(top, abs(load_first(x + i, n - i)));
  return reduce_max(top);
}

// values[i] = x[i] / scale rounded, in [-127, 127]; returns the scale, absmax / 127.
static inline float round_to_int8(int8_t* values, const float* x, int64_t n) {
  const float absmax = largest_size(x, n);
  const F32x16 factor = splat(absmax < 0x1p-120f ? 0.0f : 127.0f / absmax);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_bytes(values + i, load(x + i) * factor);
  if (i < n) {
    int8_t run[kLanes];
    store_bytes(run, load_first(x + i, n - i) * factor);
    std::memcpy(values + i, run, static_cast<size_t>(n - i));
  }
  return absmax / 127.0f;
}

// values[i] = x[i] / scale rounded to float8; returns the scale, absmax / 448.
static inline float round_to_float8(uint8_t* values, const float* x, int64_t n) {
  const float absmax = largest_size(x, n), factor = absmax < 0x1p-118f ? 0.0f : 448.0f / absmax;
  for (int64_t i = 0; i < n; ++i) values[i] = narrow_float8(x[i] * factor);
  return absmax / 448.0f;
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
