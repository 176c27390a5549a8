// Rounding a group of weights to int4 with one float16 scale. The rule is quire.ops.reference.quantize_int4's, bit for bit.
#pragma once

#include "simd.h"

namespace quire {
namespace QUIRE_LEVEL {

static inline f16 narrow(float a) {
  f16 out[1];
  store_first(out, splat(a), 1);
  return out[0];
}

static inline float wide(f16 a) {
  float lanes[kLanes];
  store(lanes, load_first(&a, 1));
  return lanes[0];
}

// values[i] = round(x[i] / scale) + 8 in [0, 15]; returns the scale, which maps the value of largest magnitude to -8.
static inline f16 round_to_int4(uint8_t* values, const float* x, int64_t n) {
  float top = 0.0f;
  for (int64_t i = 0; i < n; ++i)
    if (__builtin_fabsf(x[i]) > __builtin_fabsf(top)) top = x[i];
  const f16 stored = narrow(top / -8.0f);
  const float scale = wide(stored), inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t value = static_cast<int32_t>(__builtin_rintf(x[i] * inverse)) + 8;
    values[i] = static_cast<uint8_t>(value < 0 ? 0 : value > 15 ? 15 : value);
  }
  return stored;
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
