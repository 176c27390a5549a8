// Sixteen float32 lanes, the one place with intrinsics. A kernel is written once over F32x16 and compiled
// once per instruction-set level; each file that includes this lands in its level's own namespace.
//
// Invariants:
//  - Every level computes the same bits: only correctly rounded operations, a multiply and an add are fused
//    exactly where the code says `fma`, and reduce_add has one fixed tree.
//  - Everything here is `static inline` in a per-level namespace, and no standard template is used: the
//    linker must never pick a copy compiled for AVX-512 to serve another level.
#pragma once

#include <cstdint>
#include <cstring>

#include "dtype.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(QUIRE_NEON)
#include <arm_neon.h>
#endif

// Set by CMakeLists.txt: QUIRE_LEVEL, the level's namespace; QUIRE_NEON at the level neon, since every aarch64 compiler
// has NEON, and the level generic must be plain C++ there too.

namespace quire {
namespace QUIRE_LEVEL {

constexpr int64_t kLanes = 16;

static inline uint32_t bits_of(float a) {
  uint32_t u;
  std::memcpy(&u, &a, sizeof u);
  return u;
}

static inline float float_of(uint32_t u) {
  float a;
  std::memcpy(&a, &u, sizeof a);
  return a;
}

// ---------------------------------------------------------------- AVX-512
#if defined(__AVX512F__)

struct F32x16 { __m512 v; };

static inline F32x16 splat(float a) { return {_mm512_set1_ps(a)}; }
static inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
static inline F32x16 round_even(F32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for integral n in [-126, 127].
static inline F32x16 scale_by_power(F32x16 a, F32x16 n) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(exponent))};
}

// a, but 0 in the lanes where x < limit.
static inline F32x16 zero_where_below(F32x16 a, F32x16 x, F32x16 limit) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_NLT_UQ), a.v)};
}

// 2^n where the lowest eight bits of a lane are n + 127.
static inline F32x16 power_of_bits(F32x16 a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23))};
}

// To the nearest bfloat16, ties away from zero; of numbers, and of NaN whose low half is zero, as any made here is.
static inline F32x16 round_to_bf16(F32x16 a) {
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x8000));
  return {_mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-65536)))};
}

static inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline F32x16 load(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}

static inline F32x16 load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}

static inline F32x16 load(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

// The bfloat16 in the low or the high half of each of sixteen 32-bit words.
static inline F32x16 low_half(const uint32_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
}
static inline F32x16 high_half(const uint32_t* p) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-65536)))};
}
// A word of two bfloat16 in each lane, from their values in float32.
static inline void store_halves(uint32_t* p, F32x16 low, F32x16 high) {
  _mm512_storeu_si512(p, _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(low.v), 16), _mm512_castps_si512(high.v)));
}

static inline void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }

static inline void store(bf16* p, F32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  const __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
}

static inline void store(f16* p, F32x16 a) {
  const __m256i half = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
}

// ---------------------------------------------------------------- AVX2 (with FMA and F16C)
#elif defined(__AVX2__)

struct F32x16 { __m256 lo, hi; };

static inline F32x16 splat(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }

static inline F32x16 operator+(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}

static inline F32x16 operator-(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}

static inline F32x16 operator*(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}

static inline F32x16 operator/(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}

static inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}

static inline F32x16 max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}

static inline F32x16 min(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}

static inline F32x16 abs(F32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}

static inline F32x16 round_even(F32x16 a) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, nearest), _mm256_round_ps(a.hi, nearest)};
}

static inline __m256 power_of_two(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}

// a * 2^n for integral n in [-126, 127].
static inline F32x16 scale_by_power(F32x16 a, F32x16 n) {
  return {_mm256_mul_ps(a.lo, power_of_two(n.lo)), _mm256_mul_ps(a.hi, power_of_two(n.hi))};
}

// a, but 0 in the lanes where x < limit.
static inline F32x16 zero_where_below(F32x16 a, F32x16 x, F32x16 limit) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, limit.lo, _CMP_NLT_UQ), a.lo),
          _mm256_and_ps(_mm256_cmp_ps(x.hi, limit.hi, _CMP_NLT_UQ), a.hi)};
}

static inline __m256 power_of_bits(__m256 a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23));
}
static inline F32x16 power_of_bits(F32x16 a) { return {power_of_bits(a.lo), power_of_bits(a.hi)}; }

static inline __m256 round_to_bf16(__m256 a) {
  const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(a), _mm256_set1_epi32(0x8000));
  return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-65536)));
}
static inline F32x16 round_to_bf16(F32x16 a) { return {round_to_bf16(a.lo), round_to_bf16(a.hi)}; }

static inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }

static inline __m256 widen(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

static inline F32x16 load(const int8_t* p) { return {widen(p), widen(p + 8)}; }

static inline __m256 widen(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

static inline __m256 widen(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

static inline F32x16 load(const bf16* p) { return {widen(p), widen(p + 8)}; }
static inline F32x16 load(const f16* p) { return {widen(p), widen(p + 8)}; }

static inline __m256i words(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// The bfloat16 in the low or the high half of each of sixteen 32-bit words.
static inline F32x16 low_half(const uint32_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(words(p), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(words(p + 8), 16))};
}
static inline F32x16 high_half(const uint32_t* p) {
  const __m256i mask = _mm256_set1_epi32(-65536);
  return {_mm256_castsi256_ps(_mm256_and_si256(words(p), mask)),
          _mm256_castsi256_ps(_mm256_and_si256(words(p + 8), mask))};
}
// A word of two bfloat16 in each lane, from their values in float32.
static inline void store_halves(uint32_t* p, F32x16 low, F32x16 high) {
  const auto join = [](__m256 a, __m256 b) {
    return _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(a), 16), _mm256_castps_si256(b));
  };
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), join(low.lo, high.lo));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), join(low.hi, high.hi));
}

static inline void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}

// Eight floats to bfloat16, nearest even, each in the low half of a 32-bit lane.
static inline __m256i narrow_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i safe = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
  return _mm256_srli_epi32(safe, 16);
}

static inline void store(bf16* p, F32x16 a) {
  const __m256i packed = _mm256_packus_epi32(narrow_bf16(a.lo), narrow_bf16(a.hi));
  const __m256i ordered = _mm256_permute4x64_epi64(packed, 0xd8);  // packus works per 128-bit half
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), ordered);
}

static inline void store(f16* p, F32x16 a) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, nearest));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.hi, nearest));
}

// ---------------------------------------------------------------- NEON (aarch64)
#elif defined(QUIRE_NEON)

struct F32x16 { float32x4_t v[4]; };

static inline F32x16 splat(float a) {
  const float32x4_t v = vdupq_n_f32(a);
  return {{v, v, v, v}};
}

static inline F32x16 operator+(F32x16 a, F32x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vaddq_f32(a.v[i], b.v[i]);
  return a;
}

static inline F32x16 operator-(F32x16 a, F32x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vsubq_f32(a.v[i], b.v[i]);
  return a;
}

static inline F32x16 operator*(F32x16 a, F32x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vmulq_f32(a.v[i], b.v[i]);
  return a;
}

static inline F32x16 operator/(F32x16 a, F32x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vdivq_f32(a.v[i], b.v[i]);
  return a;
}

static inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  for (int i = 0; i < 4; ++i) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}

// As x86 defines them, so not vmaxq and vminq: the second operand when either is NaN, or when both are zero.
static inline F32x16 max(F32x16 a, F32x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]);
  return a;
}

static inline F32x16 min(F32x16 a, F32x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]);
  return a;
}

static inline F32x16 abs(F32x16 a) {
  for (int i = 0; i < 4; ++i) a.v[i] = vabsq_f32(a.v[i]);
  return a;
}

static inline F32x16 round_even(F32x16 a) {
  for (int i = 0; i < 4; ++i) a.v[i] = vrndnq_f32(a.v[i]);
  return a;
}

// a * 2^n for integral n in [-126, 127].
static inline F32x16 scale_by_power(F32x16 a, F32x16 n) {
  for (int i = 0; i < 4; ++i) {
    const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23);
    a.v[i] = vmulq_f32(a.v[i], vreinterpretq_f32_s32(exponent));
  }
  return a;
}

// a, but 0 in the lanes where x < limit.
static inline F32x16 zero_where_below(F32x16 a, F32x16 x, F32x16 limit) {
  for (int i = 0; i < 4; ++i)
    a.v[i] = vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a.v[i]), vcltq_f32(x.v[i], limit.v[i])));
  return a;
}

static inline F32x16 power_of_bits(F32x16 a) {
  for (int i = 0; i < 4; ++i) a.v[i] = vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a.v[i]), 23));
  return a;
}

static inline F32x16 round_to_bf16(F32x16 a) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t bits = vaddq_u32(vreinterpretq_u32_f32(a.v[i]), vdupq_n_u32(0x8000));
    a.v[i] = vreinterpretq_f32_u32(vandq_u32(bits, vdupq_n_u32(0xffff0000u)));
  }
  return a;
}

static inline F32x16 load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }

static inline F32x16 load(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t lo = vmovl_s8(vget_low_s8(bytes)), hi = vmovl_s8(vget_high_s8(bytes));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(lo))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(hi)))}};
}

static inline F32x16 load(const bf16* p) {
  F32x16 r;
  for (int i = 0; i < 4; ++i)
    r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p[4 * i].bits), 16));
  return r;
}

static inline F32x16 load(const f16* p) {
  F32x16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p[4 * i].bits)));
  return r;
}

// The bfloat16 in the low or the high half of each of sixteen 32-bit words.
static inline F32x16 low_half(const uint32_t* p) {
  F32x16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vreinterpretq_f32_u32(vshlq_n_u32(vld1q_u32(p + 4 * i), 16));
  return r;
}
static inline F32x16 high_half(const uint32_t* p) {
  F32x16 r;
  for (int i = 0; i < 4; ++i)
    r.v[i] = vreinterpretq_f32_u32(vandq_u32(vld1q_u32(p + 4 * i), vdupq_n_u32(0xffff0000u)));
  return r;
}
// A word of two bfloat16 in each lane, from their values in float32.
static inline void store_halves(uint32_t* p, F32x16 low, F32x16 high) {
  for (int i = 0; i < 4; ++i)
    vst1q_u32(p + 4 * i, vorrq_u32(vshrq_n_u32(vreinterpretq_u32_f32(low.v[i]), 16), vreinterpretq_u32_f32(high.v[i])));
}

static inline void store(float* p, F32x16 a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}

// To bfloat16, nearest even; NaN becomes 0x7fc0.
static inline void store(bf16* p, F32x16 a) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a.v[i]);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t number = vceqq_f32(a.v[i], a.v[i]);
    const uint32x4_t safe = vbslq_u32(number, rounded, vdupq_n_u32(0x7fc00000));
    vst1_u16(&p[4 * i].bits, vshrn_n_u32(safe, 16));
  }
}

static inline void store(f16* p, F32x16 a) {
  for (int i = 0; i < 4; ++i) vst1_u16(&p[4 * i].bits, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}

// ---------------------------------------------------------------- plain C++, on any machine
#else

struct F32x16 { float v[kLanes]; };

static inline F32x16 splat(float a) {
  F32x16 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = a;
  return r;
}

static inline F32x16 operator+(F32x16 a, F32x16 b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] += b.v[i];
  return a;
}

static inline F32x16 operator-(F32x16 a, F32x16 b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] -= b.v[i];
  return a;
}

static inline F32x16 operator*(F32x16 a, F32x16 b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] *= b.v[i];
  return a;
}

static inline F32x16 operator/(F32x16 a, F32x16 b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] /= b.v[i];
  return a;
}

static inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  for (int i = 0; i < kLanes; ++i) c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return c;
}

// As x86 defines them: the second operand when either is NaN, or when both are zero.
static inline F32x16 max(F32x16 a, F32x16 b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}

static inline F32x16 min(F32x16 a, F32x16 b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
  return a;
}

static inline F32x16 abs(F32x16 a) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = __builtin_fabsf(a.v[i]);
  return a;
}

static inline F32x16 round_even(F32x16 a) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = __builtin_nearbyintf(a.v[i]);
  return a;
}

// a * 2^n for integral n in [-126, 127].
static inline F32x16 scale_by_power(F32x16 a, F32x16 n) {
  for (int i = 0; i < kLanes; ++i)
    a.v[i] *= float_of(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23);
  return a;
}

// a, but 0 in the lanes where x < limit.
static inline F32x16 zero_where_below(F32x16 a, F32x16 x, F32x16 limit) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = x.v[i] < limit.v[i] ? 0.0f : a.v[i];
  return a;
}

static inline F32x16 power_of_bits(F32x16 a) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = float_of(bits_of(a.v[i]) << 23);
  return a;
}

static inline F32x16 round_to_bf16(F32x16 a) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = float_of((bits_of(a.v[i]) + 0x8000) & 0xffff0000u);
  return a;
}

static inline float to_float(float a) { return a; }
static inline float to_float(int8_t a) { return static_cast<float>(a); }
static inline float to_float(bf16 a) { return float_of(static_cast<uint32_t>(a.bits) << 16); }

static inline float to_float(f16 a) {
  const uint32_t sign = static_cast<uint32_t>(a.bits & 0x8000) << 16;
  const uint32_t magnitude = a.bits & 0x7fff;
  if (magnitude >= 0x7c00)  // infinity, NaN
    return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000 : 0));
  if (magnitude < 0x400)  // zero, subnormal: a multiple of 2^-24
    return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
  return float_of(sign | ((magnitude << 13) + 0x38000000));
}

static inline void from_float(float* p, float a) { *p = a; }

static inline void from_float(bf16* p, float a) {
  const uint32_t u = bits_of(a);
  const bool nan = (u & 0x7fffffff) > 0x7f800000;
  p->bits = nan ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static inline void from_float(f16* p, float a) {
  const uint32_t u = bits_of(a);
  const uint32_t sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
  uint32_t h;
  if (magnitude > 0x7f800000)  // NaN stays NaN, made quiet
    h = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  else if (magnitude >= 0x477ff000)  // 65520 and above round to infinity
    h = 0x7c00;
  else if (magnitude >= 0x38800000)  // normal: round the 13 lost bits to nearest even
    h = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  else  // subnormal: adding 0.5 lets the float adder round to a multiple of 2^-24
    h = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
  p->bits = static_cast<uint16_t>(sign | h);
}

// The bfloat16 in the low or the high half of each of sixteen 32-bit words.
static inline F32x16 low_half(const uint32_t* p) {
  F32x16 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = float_of(p[i] << 16);
  return r;
}
static inline F32x16 high_half(const uint32_t* p) {
  F32x16 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = float_of(p[i] & 0xffff0000u);
  return r;
}
// A word of two bfloat16 in each lane, from their values in float32.
static inline void store_halves(uint32_t* p, F32x16 low, F32x16 high) {
  for (int i = 0; i < kLanes; ++i) p[i] = bits_of(low.v[i]) >> 16 | bits_of(high.v[i]);
}

template <typename T>
static inline F32x16 load(const T* p) {
  F32x16 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = to_float(p[i]);
  return r;
}

template <typename T>
static inline void store(T* p, F32x16 a) {
  for (int i = 0; i < kLanes; ++i) from_float(p + i, a.v[i]);
}

#endif

// ---------------------------------------------------------------- the same for every level

// The first `n` < 16 elements, the other lanes zero.
template <typename T>
static inline F32x16 load_first(const T* p, int64_t n) {
  T buffer[kLanes] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
  return load(buffer);
}

template <typename T>
static inline void store_first(T* p, F32x16 a, int64_t n) {
  T buffer[kLanes];
  store(buffer, a);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
}

// Reductions fold halves onto halves: 16 -> 8 -> 4 -> 2 -> 1 lanes, at every level.
#if defined(__AVX2__)

static inline __m256 low_lanes(F32x16 a) {
#if defined(__AVX512F__)
  return _mm512_castps512_ps256(a.v);
#else
  return a.lo;
#endif
}

static inline __m256 high_lanes(F32x16 a) {
#if defined(__AVX512F__)
  return _mm512_extractf32x8_ps(a.v, 1);
#else
  return a.hi;
#endif
}

// Sum of the lanes.
static inline float reduce_add(F32x16 a) {
  const __m256 eight = _mm256_add_ps(low_lanes(a), high_lanes(a));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Largest of the lanes (of finite values or infinities).
static inline float reduce_max(F32x16 a) {
  const __m256 eight = _mm256_max_ps(low_lanes(a), high_lanes(a));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#else

// Sum of the lanes.
static inline float reduce_add(F32x16 a) {
  float lane[kLanes];
  store(lane, a);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// Largest of the lanes (of finite values or infinities).
static inline float reduce_max(F32x16 a) {
  float lane[kLanes];
  store(lane, a);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
}

#endif

// e^a, within 2 ulp for a <= 88; below -87.3 (where float32 runs out of normal numbers) it is 0, -inf included.
// Of NaN it is NaN: min and max give their second operand then. Range reduction by ln 2 in two parts and a polynomial of degree 5: Cephes, expf.
static inline F32x16 exp(F32x16 a) {
  const F32x16 low = splat(-87.33654f);
  const F32x16 x = max(low, min(splat(88.0f), a));
  const F32x16 n = round_even(x * splat(1.44269504f));
  F32x16 r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  F32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + splat(1.0f));
  return zero_where_below(scale_by_power(p, n), a, low);
}

// e^a for a <= 0 with a relative error below 3e-6, exactly 1 at 0: a weight that is rounded to fewer bits than that. Below -44,
// -inf included, it is 0, so that no weight's product with a common number is denormal. Of NaN it is NaN.
static inline F32x16 exp_of_score(F32x16 a) {
  const F32x16 low = splat(-44.0f);
  const F32x16 x = max(low, a);
  const F32x16 shifter = splat(12583039.0f);  // 1.5 * 2^23 + 127: a sum's lowest bits are a rounded integer + 127
  const F32x16 shifted = fma(x, splat(1.44269504f), shifter);
  const F32x16 r = fma(shifted - shifter, splat(-0.69314718f), x);
  F32x16 p = splat(4.1513849050e-2f);  // least relative error on [-ln 2 / 2, ln 2 / 2] with p(0) = 1
  p = fma(p, r, splat(1.6787473857e-1f));
  p = fma(p, r, splat(5.0003015995e-1f));
  p = fma(p, r, splat(9.9996685982e-1f));
  p = fma(p, r, splat(1.0f));
  return zero_where_below(p * power_of_bits(shifted), a, low);
}

// tanh(a), within 3 ulp: an odd polynomial up to 0.625 (Cephes, tanhf), by e^2a beyond.
static inline F32x16 tanh(F32x16 a) {
  const F32x16 size = abs(a), square = a * a;
  F32x16 p = splat(-5.70498872745e-3f);
  p = fma(p, square, splat(2.06390887954e-2f));
  p = fma(p, square, splat(-5.37397155531e-2f));
  p = fma(p, square, splat(1.33314422036e-1f));
  p = fma(p, square, splat(-3.33332819422e-1f));
  const F32x16 small = fma(p, square * a, a);
  const F32x16 large = splat(1.0f) - splat(2.0f) / (exp(a + a) + splat(1.0f));
  const F32x16 edge = splat(0.625f), above_edge = splat(0.62500006f);  // neighbours: exactly one of the two is kept
  return zero_where_below(small, splat(0.0f) - size, splat(0.0f) - edge) + zero_where_below(large, size, above_edge);
}

// a * sigmoid(a).
static inline F32x16 silu(F32x16 a) { return a / (splat(1.0f) + exp(splat(0.0f) - a)); }

}  // namespace QUIRE_LEVEL
}  // namespace quire
