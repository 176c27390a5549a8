// What the kernels of sampling.inc share: the peaks of a row's blocks, and selection without sorting.
#pragma once

#include "sampling_noise.h"

namespace quire {
namespace QUIRE_LEVEL {

constexpr float kInfinity = __builtin_inff();
constexpr float kLowest = -__FLT_MAX__;
constexpr int64_t kVectorsPerBlock = kNoiseBlock / kLanes;

static inline int64_t num_blocks_of(int64_t vocab) { return (vocab + kNoiseBlock - 1) / kNoiseBlock; }

// One row after temperature, read block by block of 64 tokens; what lies behind the row's end is -inf.
struct Row {
  const float* logits;
  int64_t vocab;
  float temperature;

  void load_block(int64_t block, F32x16 (&v)[kVectorsPerBlock]) const {
    const float* x = logits + block * kNoiseBlock;
    float padded[kNoiseBlock];
    if ((block + 1) * kNoiseBlock > vocab) {
      for (int64_t i = 0; i < kNoiseBlock; ++i) padded[i] = block * kNoiseBlock + i < vocab ? x[i] : -kInfinity;
      x = padded;
    }
    for (int64_t i = 0; i < kVectorsPerBlock; ++i) v[i] = load(x + i * kLanes);
    if (temperature != 1.0f)
      for (int64_t i = 0; i < kVectorsPerBlock; ++i) v[i] = v[i] / splat(temperature);
  }
};

// peaks[b] = largest value of block b; returns false if a value is NaN.
static inline bool find_peaks(const Row& row, float* peaks) {
  bool has_nan = false;
  const int64_t num_blocks = num_blocks_of(row.vocab);
  for (int64_t b = 0; b < num_blocks; ++b) {
    F32x16 v[kVectorsPerBlock];
    row.load_block(b, v);
    has_nan |= any_nan(v[0], v[1]) | any_nan(v[2], v[3]);
    peaks[b] = largest(max(max(v[0], v[1]), max(v[2], v[3])));
  }
  return !has_nan;
}

static inline float largest_of(const float* x, int64_t n) {
  float best = -kInfinity;
  for (int64_t i = 0; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// Appends the values >= floor of the whole row, in order of id, and returns how many; `values` has room for 16 more.
static inline int64_t gather_at_least(const Row& row, const float* peaks, float floor, float* values) {
  int64_t n = 0;
  const int64_t num_blocks = num_blocks_of(row.vocab);
  for (int64_t b = 0; b < num_blocks; ++b) {
    if (peaks[b] < floor) continue;
    F32x16 v[kVectorsPerBlock];
    row.load_block(b, v);
    for (int64_t i = 0; i < kVectorsPerBlock; ++i) {
      const uint32_t mask = mask_at_least(v[i], splat(floor));
      store_packed(values + n, v[i], mask);
      n += __builtin_popcount(mask);
    }
  }
  return n;
}

// The end of a selection: everything above `value`, and the first `num_equal` of the `num_ties` values equal to it. `above` is
// the weight of the former.
struct Cut {
  float value;
  int64_t num_equal, num_ties;
  double above;
};

static inline float median(float a, float b, float c) {
  const float low = a < b ? a : b, high = a < b ? b : a;
  return c < low ? low : c > high ? high : c;
}

static inline void swap_entries(float* values, float* weights, int64_t i, int64_t j) {
  const float value = values[i], weight = weights[i];
  values[i] = values[j], weights[i] = weights[j];
  values[j] = value, weights[j] = weight;
}

// select_mass by quickselect.
static inline Cut select_mass_of_few(float* values, float* weights, int64_t n, double base, double needed) {
  for (;;) {
    const float pivot = median(values[0], values[n / 2], values[n - 1]);
    int64_t equal = 0, next = 0, less = n;  // [0, equal) greater, [equal, next) equal, [less, n) less than the pivot
    double greater_mass = 0, equal_mass = 0;
    while (next < less) {
      if (values[next] > pivot) {
        greater_mass += static_cast<double>(weights[next]);
        swap_entries(values, weights, next++, equal++);
      } else if (values[next] < pivot) {
        swap_entries(values, weights, next, --less);
      } else {
        equal_mass += static_cast<double>(weights[next++]);
      }
    }
    if (equal > 0 && base + greater_mass >= needed) {
      n = equal;
      continue;
    }
    const int64_t num_ties = less - equal;
    const double weight = static_cast<double>(weights[equal]);
    const double before = base + greater_mass, after = before + equal_mass;
    if (after >= needed || less == n) {
      const double count = weight > 0 ? __builtin_ceil((needed - before) / weight) : 1.0;
      int64_t num_equal = count < 1.0 ? 1 : count > static_cast<double>(num_ties) ? num_ties : static_cast<int64_t>(count);
      if (after < needed) num_equal = num_ties;
      return {pivot, num_equal, num_ties, before};
    }
    base = after;
    values += less, weights += less, n -= less;
  }
}

constexpr int64_t kNumTables = 4;  // neighbours go to different tables: equal values would wait for each other's sum
constexpr int64_t kNumBuckets = 1024;
constexpr int64_t kFewValues = 256;
constexpr int64_t kMassTables = kNumTables * kNumBuckets;

// Equally wide buckets of values, bucket 0 at the top.
struct Buckets {
  float top, per_unit;

  // The buckets of 16 values, as float32. Adding 2^23 rounds to integers, in order.
  F32x16 of(F32x16 v) const {
    const F32x16 place = min((splat(top) - v) * splat(per_unit), splat(static_cast<float>(kNumBuckets - 1)));
    return (place + splat(0x1p23f)) - splat(0x1p23f);
  }
};

static inline uint32_t first_lanes(int64_t n) { return n >= kLanes ? 0xffffu : (1u << n) - 1; }

static inline Buckets buckets_over(const float* values, int64_t n) {
  F32x16 high = splat(-kInfinity), low = splat(kInfinity);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    high = max(load(values + i), high);
    low = min(load(values + i), low);
  }
  float top = largest(high), bottom = -largest(splat(0.0f) - low);
  for (; i < n; ++i) {
    top = values[i] > top ? values[i] : top;
    bottom = values[i] < bottom ? values[i] : bottom;
  }
  const float range = top - bottom;
  return {top, range > 0 ? static_cast<float>(kNumBuckets - 1) / range : 0.0f};
}

static inline void add_masses(const float* values, const float* weights, int64_t n, const Buckets& buckets, double* mass) {
  std::memset(mass, 0, kMassTables * sizeof(double));
  for (int64_t i = 0; i < n; i += kLanes) {
    float bucket[kLanes];
    store(bucket, buckets.of(load(values + i)));
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    for (int64_t j = 0; j < count; ++j)
      mass[j % kNumTables * kNumBuckets + static_cast<int64_t>(bucket[j])] += static_cast<double>(weights[i + j]);
  }
}

// The bucket in which base and the masses up to it reach `needed` (the last one with any, if they never do); moves `base`
// to the mass before that bucket.
static inline int64_t find_crossing(const double* mass, double& base, double needed) {
  int64_t last = 0;
  double reached = base, before_last = base;
  for (int64_t b = 0; b < kNumBuckets; ++b) {
    const double own = (mass[b] + mass[b + kNumBuckets]) + (mass[b + 2 * kNumBuckets] + mass[b + 3 * kNumBuckets]);
    if (own > 0) last = b, before_last = reached;
    if (reached + own >= needed) break;
    reached += own;
  }
  base = before_last;
  return last;
}

static inline int64_t keep_bucket(float* values, float* weights, int64_t n, const Buckets& buckets, int64_t bucket) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32x16 v = load(values + i), w = load(weights + i);
    const uint32_t mask = mask_equal(buckets.of(v), splat(static_cast<float>(bucket))) & first_lanes(n - i);
    store_packed(values + kept, v, mask);
    store_packed(weights + kept, w, mask);
    kept += __builtin_popcount(mask);
  }
  return kept;
}

// Fewest of the n >= 1 largest values whose weights reach `needed`; at least one, all if they never do. Where equal values have
// other weights than each other, `num_equal` says nothing. Narrows down to the bucket where that happens, until few values are left. Overwrites values and weights, which have
// room for 16 more; `mass` [kMassTables] is scratch.
static inline Cut select_mass(float* values, float* weights, int64_t n, double needed, double* mass) {
  double base = 0;
  while (n > kFewValues) {
    const Buckets buckets = buckets_over(values, n);
    if (!(buckets.per_unit > 0 && buckets.per_unit < kInfinity)) break;  // all equal, or too close to tell apart
    add_masses(values, weights, n, buckets, mass);
    const int64_t bucket = find_crossing(mass, base, needed);
    n = keep_bucket(values, weights, n, buckets, bucket);
  }
  return select_mass_of_few(values, weights, n, base, needed);
}

// The k-th largest of n >= k >= 1 values, as a Cut of exactly k; reorders `values` and overwrites `weights`.
static inline Cut select_count(float* values, float* weights, int64_t n, int64_t k, double* mass) {
  for (int64_t i = 0; i < n; ++i) weights[i] = 1.0f;
  return select_mass(values, weights, n, static_cast<double>(k), mass);
}

// A value that at least k tokens reach, and if possible few more: the k-th largest peak, or `floor` if there are fewer blocks.
static inline float floor_of_top(const float* peaks, int64_t num_blocks, int64_t k, float floor, float* values,
                                 float* weights, double* mass) {
  if (k > num_blocks) return floor;
  std::memcpy(values, peaks, static_cast<size_t>(num_blocks) * sizeof(float));
  const float reached = select_count(values, weights, num_blocks, k, mass).value;
  return reached > floor ? reached : floor;
}

// Sum of exp(v - top) over the values v >= floor, in float64: lane i of a block's vectors goes to lane i.
static inline double sum_of_exp(const Row& row, const float* peaks, float top, float floor) {
  F64x8 low = splat64(0), high = splat64(0);
  const int64_t num_blocks = num_blocks_of(row.vocab);
  for (int64_t b = 0; b < num_blocks; ++b) {
    if (peaks[b] < floor || peaks[b] - top < -88.0f) continue;  // adds zeros
    F32x16 v[kVectorsPerBlock];
    row.load_block(b, v);
    for (int64_t i = 0; i < kVectorsPerBlock; ++i) {
      const F32x16 weight = zero_where_below(exp(v[i] - splat(top)), v[i], splat(floor));
      low = low + low_half(weight);
      high = high + high_half(weight);
    }
  }
  return reduce_add(low + high);
}

static inline double log_of(double x) {
  double lane[kLanes64];
  store(lane, log(splat64(x)));
  return lane[0];
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
