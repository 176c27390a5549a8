// Sums over one row, its RMS norm and its layer norm, for every kernel that normalises. A sum has one order, fixed by `dim`: element i
// goes to lane i % 64 (four registers of sixteen lanes), the registers are added as (0+1)+(2+3), then reduce_add.
#pragma once

#include "simd.h"

namespace quire {
namespace QUIRE_LEVEL {

// The first `n` < 16 lanes, the others zero.
static inline F32x16 first_lanes(F32x16 a, int64_t n) {
  float lanes[kLanes];
  store(lanes, a);
  return load_first(lanes, n);
}

// The sum of f(x[i]).
template <typename T, typename F>
static inline float sum_of(const T* x, int64_t dim, const F& f) {
  constexpr int64_t step = 4 * kLanes;
  F32x16 acc[4] = {splat(0), splat(0), splat(0), splat(0)};
  int64_t i = 0;
  for (; i + step <= dim; i += step)
    for (int64_t j = 0; j < 4; ++j) acc[j] = acc[j] + f(load(x + i + j * kLanes));
  for (int64_t j = 0; i < dim; ++j, i += kLanes) {
    const int64_t n = dim - i;
    acc[j] = acc[j] + (n >= kLanes ? f(load(x + i)) : first_lanes(f(load_first(x + i, n)), n));
  }
  return reduce_add((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

template <typename T>
static inline float sum_of_squares(const T* x, int64_t dim) {
  return sum_of(x, dim, [](F32x16 v) { return v * v; });
}

template <typename T>
static inline void add_rows(T* out, const T* a, const T* b, int64_t dim) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) store(out + i, load(a + i) + load(b + i));
  if (i < dim) store_first(out + i, load_first(a + i, dim - i) + load_first(b + i, dim - i), dim - i);
}

template <typename T, typename W>
static inline void scale_row(T* out, const T* x, const W* weight, float factor, int64_t dim) {
  const F32x16 f = splat(factor);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) store(out + i, load(x + i) * f * load(weight + i));
  if (i < dim)
    store_first(out + i, load_first(x + i, dim - i) * f * load_first(weight + i, dim - i), dim - i);
}

// Correctly rounded, so the same at every level; not <cmath>, whose inline functions could leak (simd.h).
static inline float inverse_root(float mean_square) { return 1.0f / __builtin_sqrtf(mean_square); }

template <typename T, typename W>
static inline void norm_row(T* out, const T* x, const W* weight, int64_t dim, float eps) {
  scale_row(out, x, weight, inverse_root(sum_of_squares(x, dim) / static_cast<float>(dim) + eps), dim);
}

// (a - mean) * factor * weight (+ bias), sixteen or `n` < 16 at a time.
template <typename T, typename W>
static inline void shift_and_scale(T* out, const T* x, const W* weight, const W* bias, float mean, float factor, int64_t dim) {
  const F32x16 m = splat(mean), f = splat(factor);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    const F32x16 y = (load(x + i) - m) * f * load(weight + i);
    store(out + i, bias ? y + load(bias + i) : y);
  }
  if (const int64_t n = dim - i; n > 0) {
    const F32x16 y = (load_first(x + i, n) - m) * f * load_first(weight + i, n);
    store_first(out + i, bias ? y + load_first(bias + i, n) : y, n);
  }
}

// Layer norm in two passes: a large mean does not cost the variance its bits.
template <typename T, typename W>
static inline void layer_norm_row(T* out, const T* x, const W* weight, const W* bias, int64_t dim, float eps) {
  const float count = static_cast<float>(dim), mean = sum_of(x, dim, [](F32x16 v) { return v; }) / count;
  const F32x16 m = splat(mean);
  const float variance = sum_of(x, dim, [m](F32x16 v) { return (v - m) * (v - m); }) / count;
  shift_and_scale(out, x, weight, bias, mean, inverse_root(variance + eps), dim);
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
