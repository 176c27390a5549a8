// Eight float64 or uint64 lanes, for the noise of the sampler, and comparisons of F32x16 as bit masks.
//
// The invariants of simd.h hold here too: only correctly rounded or exact operations, nothing fused, so that every level
// computes the same bits.
#pragma once

#include "simd.h"

namespace quire {
namespace QUIRE_LEVEL {

constexpr int64_t kLanes64 = 8;

// ---------------------------------------------------------------- AVX-512
#if defined(__AVX512F__)

struct F64x8 { __m512d v; };
struct U64x8 { __m512i v; };

static inline F64x8 splat64(double a) { return {_mm512_set1_pd(a)}; }
static inline U64x8 splat_u64(uint64_t a) { return {_mm512_set1_epi64(static_cast<int64_t>(a))}; }
static inline F64x8 operator+(F64x8 a, F64x8 b) { return {_mm512_add_pd(a.v, b.v)}; }
static inline F64x8 operator-(F64x8 a, F64x8 b) { return {_mm512_sub_pd(a.v, b.v)}; }
static inline F64x8 operator*(F64x8 a, F64x8 b) { return {_mm512_mul_pd(a.v, b.v)}; }
static inline F64x8 operator/(F64x8 a, F64x8 b) { return {_mm512_div_pd(a.v, b.v)}; }
static inline U64x8 operator+(U64x8 a, U64x8 b) { return {_mm512_add_epi64(a.v, b.v)}; }
static inline U64x8 operator&(U64x8 a, U64x8 b) { return {_mm512_and_si512(a.v, b.v)}; }
static inline U64x8 operator|(U64x8 a, U64x8 b) { return {_mm512_or_si512(a.v, b.v)}; }
static inline U64x8 operator^(U64x8 a, U64x8 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int n>
static inline U64x8 shift_right(U64x8 a) { return {_mm512_srli_epi64(a.v, n)}; }
// Products of the low 32 bits of each lane.
static inline U64x8 multiply_low(U64x8 a, U64x8 b) { return {_mm512_mul_epu32(a.v, b.v)}; }
static inline F64x8 as_f64(U64x8 a) { return {_mm512_castsi512_pd(a.v)}; }
static inline U64x8 as_u64(F64x8 a) { return {_mm512_castpd_si512(a.v)}; }
static inline U64x8 load_u64(const uint64_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store(double* p, F64x8 a) { _mm512_storeu_pd(p, a.v); }
static inline void store(uint64_t* p, U64x8 a) { _mm512_storeu_si512(p, a.v); }
static inline F64x8 low_half(F32x16 a) { return {_mm512_cvtps_pd(_mm512_castps512_ps256(a.v))}; }
static inline F64x8 high_half(F32x16 a) { return {_mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))}; }

// Bit i says what holds in lane i; comparisons with NaN are false.
static inline uint32_t mask_equal(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
static inline uint32_t mask_greater(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
static inline uint32_t mask_at_least(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
static inline bool any_nan(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q) != 0; }

// a in the lanes that `mask` names, b in the others.
static inline F32x16 select(uint32_t mask, F32x16 a, F32x16 b) {
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(mask), b.v, a.v)};
}

// Stores the lanes that `mask` names next to each other; may write 16 elements.
static inline void store_packed(float* p, F32x16 a, uint32_t mask) {
  _mm512_storeu_ps(p, _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), a.v));
}

static inline float largest(F32x16 a) { return _mm512_reduce_max_ps(a.v); }

// ---------------------------------------------------------------- AVX2
#elif defined(__AVX2__)

struct F64x8 { __m256d lo, hi; };
struct U64x8 { __m256i lo, hi; };

static inline F64x8 splat64(double a) { return {_mm256_set1_pd(a), _mm256_set1_pd(a)}; }

static inline U64x8 splat_u64(uint64_t a) {
  const __m256i v = _mm256_set1_epi64x(static_cast<int64_t>(a));
  return {v, v};
}

static inline F64x8 operator+(F64x8 a, F64x8 b) { return {_mm256_add_pd(a.lo, b.lo), _mm256_add_pd(a.hi, b.hi)}; }
static inline F64x8 operator-(F64x8 a, F64x8 b) { return {_mm256_sub_pd(a.lo, b.lo), _mm256_sub_pd(a.hi, b.hi)}; }
static inline F64x8 operator*(F64x8 a, F64x8 b) { return {_mm256_mul_pd(a.lo, b.lo), _mm256_mul_pd(a.hi, b.hi)}; }
static inline F64x8 operator/(F64x8 a, F64x8 b) { return {_mm256_div_pd(a.lo, b.lo), _mm256_div_pd(a.hi, b.hi)}; }

static inline U64x8 operator+(U64x8 a, U64x8 b) {
  return {_mm256_add_epi64(a.lo, b.lo), _mm256_add_epi64(a.hi, b.hi)};
}

static inline U64x8 operator&(U64x8 a, U64x8 b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}

static inline U64x8 operator|(U64x8 a, U64x8 b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}

static inline U64x8 operator^(U64x8 a, U64x8 b) {
  return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)};
}

template <int n>
static inline U64x8 shift_right(U64x8 a) { return {_mm256_srli_epi64(a.lo, n), _mm256_srli_epi64(a.hi, n)}; }

// Products of the low 32 bits of each lane.
static inline U64x8 multiply_low(U64x8 a, U64x8 b) {
  return {_mm256_mul_epu32(a.lo, b.lo), _mm256_mul_epu32(a.hi, b.hi)};
}

static inline F64x8 as_f64(U64x8 a) { return {_mm256_castsi256_pd(a.lo), _mm256_castsi256_pd(a.hi)}; }
static inline U64x8 as_u64(F64x8 a) { return {_mm256_castpd_si256(a.lo), _mm256_castpd_si256(a.hi)}; }

static inline U64x8 load_u64(const uint64_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 4))};
}

static inline void store(double* p, F64x8 a) {
  _mm256_storeu_pd(p, a.lo);
  _mm256_storeu_pd(p + 4, a.hi);
}

static inline void store(uint64_t* p, U64x8 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 4), a.hi);
}

static inline F64x8 widen(__m256 a) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1))};
}

static inline F64x8 low_half(F32x16 a) { return widen(a.lo); }
static inline F64x8 high_half(F32x16 a) { return widen(a.hi); }

template <int comparison>
static inline uint32_t mask_where(F32x16 a, F32x16 b) {
  const int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, comparison));
  const int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, comparison));
  return static_cast<uint32_t>(lo | hi << 8);
}

// Bit i says what holds in lane i; comparisons with NaN are false.
static inline uint32_t mask_equal(F32x16 a, F32x16 b) { return mask_where<_CMP_EQ_OQ>(a, b); }
static inline uint32_t mask_greater(F32x16 a, F32x16 b) { return mask_where<_CMP_GT_OQ>(a, b); }
static inline uint32_t mask_at_least(F32x16 a, F32x16 b) { return mask_where<_CMP_GE_OQ>(a, b); }
static inline bool any_nan(F32x16 a, F32x16 b) { return mask_where<_CMP_UNORD_Q>(a, b) != 0; }

static inline float largest(F32x16 a) { return reduce_max(a); }

static inline __m256 select_half(uint32_t mask, __m256 a, __m256 b) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i own = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bits);
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, bits)));
}

// a in the lanes that `mask` names, b in the others.
static inline F32x16 select(uint32_t mask, F32x16 a, F32x16 b) {
  return {select_half(mask, a.lo, b.lo), select_half(mask >> 8, a.hi, b.hi)};
}

// ---------------------------------------------------------------- plain C++, and NEON: lanes of F32x16 through memory
#else

struct F64x8 { double v[kLanes64]; };
struct U64x8 { uint64_t v[kLanes64]; };

static inline F64x8 splat64(double a) {
  F64x8 r;
  for (int i = 0; i < kLanes64; ++i) r.v[i] = a;
  return r;
}

static inline U64x8 splat_u64(uint64_t a) {
  U64x8 r;
  for (int i = 0; i < kLanes64; ++i) r.v[i] = a;
  return r;
}

#define QUIRE_LANEWISE(type, op)                                  \
  static inline type operator op(type a, type b) {                \
    for (int i = 0; i < kLanes64; ++i) a.v[i] = a.v[i] op b.v[i]; \
    return a;                                                     \
  }
QUIRE_LANEWISE(F64x8, +)
QUIRE_LANEWISE(F64x8, -)
QUIRE_LANEWISE(F64x8, *)
QUIRE_LANEWISE(F64x8, /)
QUIRE_LANEWISE(U64x8, +)
QUIRE_LANEWISE(U64x8, &)
QUIRE_LANEWISE(U64x8, |)
QUIRE_LANEWISE(U64x8, ^)
#undef QUIRE_LANEWISE

template <int n>
static inline U64x8 shift_right(U64x8 a) {
  for (int i = 0; i < kLanes64; ++i) a.v[i] >>= n;
  return a;
}

// Products of the low 32 bits of each lane.
static inline U64x8 multiply_low(U64x8 a, U64x8 b) {
  for (int i = 0; i < kLanes64; ++i) a.v[i] = (a.v[i] & 0xffffffff) * (b.v[i] & 0xffffffff);
  return a;
}

static inline F64x8 as_f64(U64x8 a) {
  F64x8 r;
  std::memcpy(&r, &a, sizeof r);
  return r;
}

static inline U64x8 as_u64(F64x8 a) {
  U64x8 r;
  std::memcpy(&r, &a, sizeof r);
  return r;
}

static inline U64x8 load_u64(const uint64_t* p) {
  U64x8 r;
  std::memcpy(&r, p, sizeof r);
  return r;
}

static inline void store(double* p, F64x8 a) { std::memcpy(p, &a, sizeof a); }
static inline void store(uint64_t* p, U64x8 a) { std::memcpy(p, &a, sizeof a); }

static inline F64x8 low_half(F32x16 a) {
  float lane[kLanes];
  store(lane, a);
  F64x8 r;
  for (int i = 0; i < kLanes64; ++i) r.v[i] = static_cast<double>(lane[i]);
  return r;
}

static inline F64x8 high_half(F32x16 a) {
  float lane[kLanes];
  store(lane, a);
  F64x8 r;
  for (int i = 0; i < kLanes64; ++i) r.v[i] = static_cast<double>(lane[i + kLanes64]);
  return r;
}

#define QUIRE_MASK(name, condition)                                                 \
  static inline uint32_t name(F32x16 a, F32x16 b) {                                 \
    float x[kLanes], y[kLanes];                                                     \
    store(x, a);                                                                    \
    store(y, b);                                                                    \
    uint32_t mask = 0;                                                              \
    for (int i = 0; i < kLanes; ++i) mask |= static_cast<uint32_t>(condition) << i; \
    return mask;                                                                    \
  }
// Bit i says what holds in lane i; comparisons with NaN are false.
QUIRE_MASK(mask_equal, x[i] == y[i])
QUIRE_MASK(mask_greater, x[i] > y[i])
QUIRE_MASK(mask_at_least, x[i] >= y[i])
QUIRE_MASK(mask_nan, x[i] != x[i] || y[i] != y[i])
#undef QUIRE_MASK

static inline bool any_nan(F32x16 a, F32x16 b) { return mask_nan(a, b) != 0; }

static inline float largest(F32x16 a) { return reduce_max(a); }

// a in the lanes that `mask` names, b in the others.
static inline F32x16 select(uint32_t mask, F32x16 a, F32x16 b) {
  float x[kLanes], y[kLanes];
  store(x, a);
  store(y, b);
  for (int i = 0; i < kLanes; ++i) y[i] = mask >> i & 1 ? x[i] : y[i];
  return load(y);
}

#endif

// ---------------------------------------------------------------- the same for every level

#if !defined(__AVX512F__)
// Stores the lanes that `mask` names next to each other; may write 16 elements.
static inline void store_packed(float* p, F32x16 a, uint32_t mask) {
  float lane[kLanes];
  store(lane, a);
  for (; mask; mask &= mask - 1) *p++ = lane[__builtin_ctz(mask)];
}
#endif

// Exact for a < 2^52: the integer becomes the mantissa of 2^52 + a.
static inline F64x8 to_f64(U64x8 a) {
  return as_f64(a | splat_u64(0x4330000000000000)) - splat64(0x1p52);
}

// Sum of the lanes: halves onto halves.
static inline double reduce_add(F64x8 a) {
  double lane[kLanes64];
  store(lane, a);
  for (int64_t width = kLanes64 / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// Natural logarithm of positive normal numbers, within 1 ulp. x = 2^k m with m in [sqrt(1/2), sqrt(2)), and
// log m = 2 artanh(s) with s = (m - 1) / (m + 1), as a polynomial in s^2: fdlibm, e_log.c.
static inline F64x8 log(F64x8 x) {
  const uint64_t one = 0x3ff0000000000000, root = 0x3fe6a09e00000000;
  const U64x8 shifted = as_u64(x) + splat_u64(one - root);
  const F64x8 k = to_f64(shift_right<52>(shifted)) - splat64(1023.0);
  const F64x8 m = as_f64((shifted & splat_u64(0x000fffffffffffff)) + splat_u64(root));
  const F64x8 f = m - splat64(1.0), half_square = splat64(0.5) * f * f;
  const F64x8 s = f / (splat64(2.0) + f), z = s * s, w = z * z;
  const F64x8 even = w * (splat64(3.999999999940941908e-01) +
                          w * (splat64(2.222219843214978396e-01) + w * splat64(1.531383769920937332e-01)));
  const F64x8 odd = z * (splat64(6.666666666666735130e-01) +
                         w * (splat64(2.857142874366239149e-01) +
                              w * (splat64(1.818357216161805012e-01) + w * splat64(1.479819860511658591e-01))));
  const F64x8 low = s * (half_square + (odd + even)) + k * splat64(1.90821492927058770002e-10);
  return ((low - half_square) + f) + k * splat64(6.93147180369123816490e-01);
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
