// Sixteen float32 numbers, looked up by four bits of each lane.
#pragma once

#include "simd.h"

namespace quire {
namespace QUIRE_LEVEL {

// load_words: sixteen words. look_up<shift>: the numbers at bits shift to shift + 3 of each word.
#if defined(__AVX512F__)

struct Table { __m512 v; };
struct Words { __m512i v; };

static inline Table load_table(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline Words load_words(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
template <int kShift>
static inline F32x16 look_up(const Table& table, const Words& w) {
  return {_mm512_permutexvar_ps(_mm512_srli_epi32(w.v, kShift), table.v)};
}

#elif defined(__AVX2__)

struct Table { __m256 low, high; };
struct Words { __m256i lo, hi; };

static inline Table load_table(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline Words load_words(const uint32_t* p) { return {words(p), words(p + 8)}; }
template <int kShift>
static inline __m256 look_up_eight(const Table& table, __m256i w) {
  const __m256i index = _mm256_srli_epi32(w, kShift);
  const __m256 fourth_bit = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));   // in the sign, which blendv reads
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, index), _mm256_permutevar8x32_ps(table.high, index), fourth_bit);
}
template <int kShift>
static inline F32x16 look_up(const Table& table, const Words& w) {
  return {look_up_eight<kShift>(table, w.lo), look_up_eight<kShift>(table, w.hi)};
}

#elif defined(QUIRE_NEON)

struct Table { uint8x16x4_t v; };
struct Words { uint32x4_t v[4]; };

static inline Table load_table(const float* p) {
  Table table;
  for (int i = 0; i < 4; ++i) table.v.val[i] = vld1q_u8(reinterpret_cast<const uint8_t*>(p + 4 * i));
  return table;
}
static inline Words load_words(const uint32_t* p) {
  return {{vld1q_u32(p), vld1q_u32(p + 4), vld1q_u32(p + 8), vld1q_u32(p + 12)}};
}
// By bytes: those of number i are 4 i to 4 i + 3.
template <int kShift>
static inline F32x16 look_up(const Table& table, const Words& w) {
  F32x16 r;
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t index = vandq_u32(vshlq_u32(w.v[i], vdupq_n_s32(-kShift)), vdupq_n_u32(15));
    const uint32x4_t bytes = vaddq_u32(vmulq_n_u32(index, 0x04040404u), vdupq_n_u32(0x03020100u));
    r.v[i] = vreinterpretq_f32_u8(vqtbl4q_u8(table.v, vreinterpretq_u8_u32(bytes)));
  }
  return r;
}

#else

struct Table { float v[16]; };
struct Words { uint32_t v[kLanes]; };

static inline Table load_table(const float* p) {
  Table table;
  std::memcpy(table.v, p, sizeof table.v);
  return table;
}
static inline Words load_words(const uint32_t* p) {
  Words w;
  std::memcpy(w.v, p, sizeof w.v);
  return w;
}
template <int kShift>
static inline F32x16 look_up(const Table& table, const Words& w) {
  F32x16 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = table.v[w.v[i] >> kShift & 15];
  return r;
}

#endif

}  // namespace QUIRE_LEVEL
}  // namespace quire
