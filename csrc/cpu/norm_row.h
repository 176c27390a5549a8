// RMS norm of one row, for every kernel that normalises. The sum of squares has one order, fixed by `dim`: element i
// goes to lane i % 64 (four registers of sixteen lanes), the registers are added as (0+1)+(2+3), then reduce_add.
#pragma once

#include "simd.h"

namespace quire {
namespace QUIRE_LEVEL {

template <typename T>
static inline float sum_of_squares(const T* x, int64_t dim) {
  constexpr int64_t step = 4 * kLanes;
  F32x16 acc[4] = {splat(0), splat(0), splat(0), splat(0)};
  int64_t i = 0;
  for (; i + step <= dim; i += step)
    for (int64_t j = 0; j < 4; ++j) {
      const F32x16 v = load(x + i + j * kLanes);
      acc[j] = acc[j] + v * v;
    }
  for (int64_t j = 0; i < dim; ++j, i += kLanes) {
    const int64_t n = dim - i;
    const F32x16 v = n >= kLanes ? load(x + i) : load_first(x + i, n);
    acc[j] = acc[j] + v * v;
  }
  return reduce_add((acc[0] + acc[1]) + (acc[2] + acc[3]));
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

}  // namespace QUIRE_LEVEL
}  // namespace quire
