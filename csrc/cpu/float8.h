// float8 e4m3 (fn: no infinities, 448 is the largest): widened exactly to bfloat16 in registers, and made of float32.
//
// The bits are seeemmm with a bias of 7; 0 to 7 are multiples of 2^-9. The two NaN are refused where numbers come in
// (ops.weights), so that nothing here looks for them.
#pragma once

#include "pairs.h"

namespace quire {
namespace QUIRE_LEVEL {

// Exponent and mantissa of a byte, where those of a float32 are: what is missing is 120 in the exponent. Below the smallest normal
// number the leading bit, which a float32 has and the byte has not, is taken off.
static inline float widen_float8(uint32_t byte) {
  const uint32_t size = (byte & 0x7f) << 20;
  const float value = size < 0x00800000u ? float_of(size + 0x3c800000u) - 0x1p-6f : float_of(size + 0x3c000000u);
  return float_of((byte & 0x80) << 24 | bits_of(value));
}

// To the nearest, ties to even, of numbers up to 448. Adding 2^14 rounds to a multiple of 2^-9.
static inline uint8_t narrow_float8(float value) {
  const uint32_t bits = bits_of(value), size = bits & 0x7fffffffu;
  const uint32_t normal = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120 << 3);
  const uint32_t small = bits_of(float_of(size) + 0x1p14f) - bits_of(0x1p14f);
  return static_cast<uint8_t>((bits >> 24 & 0x80) | (size < bits_of(0x1p-6f) ? small : normal));
}

// Sixteen words of four numbers each (inlined by force: a call in the inner loop would empty all registers), as weight_format.h lays them out: inputs 0 and 1, 2 and 3.
struct Quads { Pairs first, second; };

#if defined(__AVX512BF16__)

// Of each 16-bit lane the byte at `size`, bits 11 to 4, with its sign still to come; `byte` has the byte in its lowest bits.
static inline __m512i widen_sizes(__m512i size, __mmask32 below_normal, __m512i byte) {
  // Multiples of 2^-9 in bfloat16, by the lowest five bits of a byte, of which two are zero.
  const __m512i multiples = _mm512_broadcast_i32x4(_mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  const __m512i normal = _mm512_add_epi16(_mm512_and_si512(size, _mm512_set1_epi16(0x07f0)), _mm512_set1_epi16(0x3c00));
  return _mm512_mask_permutexvar_epi16(normal, below_normal, byte, multiples);
}

// signs & 0x8000 | sizes, in each 16-bit lane.
static inline __m512i with_signs(__m512i signs, __m512i sizes) {
  return _mm512_ternarylogic_epi32(signs, _mm512_set1_epi16(-0x8000), sizes, 0xea);
}

[[gnu::always_inline]] static inline Quads load_float8(const uint32_t* p) {
  const __m512i v = _mm512_loadu_si512(p);
  const __mmask32 low_below = _mm512_testn_epi16_mask(v, _mm512_set1_epi16(0x0078));
  const __mmask32 high_below = _mm512_testn_epi16_mask(v, _mm512_set1_epi16(0x7800));
  const __m512i low = widen_sizes(_mm512_slli_epi16(v, 4), low_below, v);
  const __m512i high = widen_sizes(_mm512_srli_epi16(v, 4), high_below, _mm512_srli_epi16(v, 8));
  return {{with_signs(_mm512_slli_epi16(v, 8), low)}, {with_signs(v, high)}};
}

#else

#if defined(__AVX512F__)

// The byte in the top bits of each lane.
static inline F32x16 widen_top(__m512i v) {
  const __m512i size = _mm512_and_si512(_mm512_srli_epi32(v, 4), _mm512_set1_epi32(0x07f00000));
  const __mmask16 below_normal = _mm512_testn_epi32_mask(size, _mm512_set1_epi32(0x07800000));
  const __m512i bits = _mm512_add_epi32(size, _mm512_set1_epi32(0x3c000000));
  const __m512i doubled = _mm512_mask_add_epi32(bits, below_normal, bits, _mm512_set1_epi32(0x00800000));
  const __m512 value = _mm512_castsi512_ps(doubled);
  const __m512 fixed = _mm512_mask_sub_ps(value, below_normal, value, _mm512_set1_ps(0x1p-6f));
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_set1_epi32(INT32_MIN), v, _mm512_castps_si512(fixed), 0xea))};
}
template <int kShift>
static inline F32x16 widen_shifted(const uint32_t* p) { return widen_top(_mm512_slli_epi32(_mm512_loadu_si512(p), kShift)); }

#elif defined(__AVX2__)

static inline __m256 widen_top(__m256i v) {
  const __m256i size = _mm256_and_si256(_mm256_srli_epi32(v, 4), _mm256_set1_epi32(0x07f00000));
  const __m256i below_normal = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x00800000), size);
  const __m256i bits = _mm256_add_epi32(size, _mm256_set1_epi32(0x3c000000));
  const __m256 doubled = _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(0x00800000)));
  const __m256 value = _mm256_blendv_ps(_mm256_castsi256_ps(bits), _mm256_sub_ps(doubled, _mm256_set1_ps(0x1p-6f)),
                                        _mm256_castsi256_ps(below_normal));
  return _mm256_or_ps(value, _mm256_and_ps(_mm256_castsi256_ps(v), _mm256_set1_ps(-0.0f)));
}
template <int kShift>
static inline F32x16 widen_shifted(const uint32_t* p) {
  return {widen_top(_mm256_slli_epi32(words(p), kShift)), widen_top(_mm256_slli_epi32(words(p + 8), kShift))};
}

#else

template <int kShift>
static inline F32x16 widen_shifted(const uint32_t* p) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = widen_float8(p[i] << kShift >> 24);
  return load(lanes);
}

#endif

[[gnu::always_inline]] static inline Quads load_float8(const uint32_t* p) {
  return {{widen_shifted<24>(p), widen_shifted<8>(p)}, {widen_shifted<16>(p), widen_shifted<0>(p)}};
}

#endif

}  // namespace QUIRE_LEVEL
}  // namespace quire
