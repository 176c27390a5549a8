// Rounding a group of weights to int4 with one float16 scale. The rule is quire.ops.quantize.quantize_int4's, bit for bit.
#pragma once

#include "dot.h"

namespace quire {
namespace QUIRE_LEVEL {

static inline F32x16 through_half(F32x16 a) {
  f16 half[kLanes];
  store(half, a);
  return load(half);
}

// round(x / scale) held to [-8, 7].
static inline F32x16 int4_value(F32x16 x, float inverse) {
  return max(min(round_even(x * splat(inverse)), splat(7.0f)), splat(-8.0f));
}

static inline float inverse_of(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

// Sum of the squared errors that a scale leaves; n is a multiple of 16.
static inline float int4_error(const float* x, int64_t n, float scale) {
  const float inverse = inverse_of(scale);
  F32x16 sum = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32x16 v = load(x + i), error = v - int4_value(v, inverse) * splat(scale);
    sum = sum + error * error;
  }
  return reduce_add(sum);
}

// values[i] = rounded x[i] + 8, in [0, 15]; returns the scale of the first smallest error.
static inline f16 round_to_int4(uint8_t* values, const float* x, int64_t n) {
  F32x16 high = load(x), low = splat(0.0f) - high;
  for (int64_t i = kLanes; i < n; i += kLanes) {
    high = max(high, load(x + i));
    low = max(low, splat(0.0f) - load(x + i));
  }
  const float largest = reduce_max(high), smallest = -reduce_max(low);
  const float extreme = largest >= -smallest ? largest : smallest;
  constexpr float divisors[] = {8.0f, 7.5f, 8.5f, 7.0f, 9.0f};
  float candidates[kLanes] = {}, best_error = __builtin_inff(), best = 0.0f;
  for (int i = 0; i < 5; ++i) candidates[i] = extreme / -divisors[i];
  store(candidates, through_half(load(candidates)));
  for (int i = 0; i < 5; ++i) {
    const float error = int4_error(x, n, candidates[i]);
    if (error < best_error) {
      best_error = error;
      best = candidates[i];
    }
  }
  const float inverse = inverse_of(best);
  for (int64_t i = 0; i < n; i += kLanes)
    store_bytes(reinterpret_cast<int8_t*>(values) + i, int4_value(load(x + i), inverse) + splat(8.0f));
  f16 stored[kLanes];
  store(stored, splat(best));
  return stored[0];
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
