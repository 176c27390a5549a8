// Codes of uint4 to uint8 as unsigned bytes: four inputs of sixteen outputs, put together from a panel's words (weight_format.h).
#pragma once

#include "dot.h"
#include "weight_format.h"

namespace quire {
namespace QUIRE_LEVEL {

// Sixteen 32-bit words of a panel; operations are on each word or byte alone.
#if defined(__AVX512F__)

struct Words { __m512i v; };
static inline Words load_words(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline Words operator|(Words a, Words b) { return {_mm512_or_si512(a.v, b.v)}; }
static inline Words mask_bytes(Words a, int mask) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(static_cast<char>(mask)))}; }
template <int kBits>
static inline Words move_left(Words a) {
  if constexpr (kBits >= 0) return {_mm512_slli_epi32(a.v, kBits)};
  else return {_mm512_srli_epi32(a.v, -kBits)};
}
static inline Bytes to_bytes(Words a) { return as_bytes(a.v); }

#elif defined(__AVX2__)

struct Words { __m256i lo, hi; };
static inline Words load_words(const uint8_t* p) { return {raw(p), raw(p + 32)}; }
static inline Words operator|(Words a, Words b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
static inline Words mask_bytes(Words a, int mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(a.lo, m), _mm256_and_si256(a.hi, m)};
}
template <int kBits>
static inline Words move_left(Words a) {
  if constexpr (kBits >= 0) return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
  else return {_mm256_srli_epi32(a.lo, -kBits), _mm256_srli_epi32(a.hi, -kBits)};
}
static inline Bytes to_bytes(Words a) { return as_bytes(a.lo, a.hi); }

#elif defined(QUIRE_NEON)

struct Words { uint32x4_t v[4]; };
static inline Words load_words(const uint8_t* p) {
  Words r;
  for (int i = 0; i < 4; ++i) r.v[i] = vreinterpretq_u32_u8(vld1q_u8(p + 16 * i));
  return r;
}
static inline Words operator|(Words a, Words b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vorrq_u32(a.v[i], b.v[i]);
  return a;
}
static inline Words mask_bytes(Words a, int mask) {
  const uint32x4_t m = vreinterpretq_u32_u8(vdupq_n_u8(static_cast<uint8_t>(mask)));
  for (int i = 0; i < 4; ++i) a.v[i] = vandq_u32(a.v[i], m);
  return a;
}
template <int kBits>
static inline Words move_left(Words a) {
  const int32x4_t by = vdupq_n_s32(kBits);   // to the right if negative
  for (int i = 0; i < 4; ++i) a.v[i] = vshlq_u32(a.v[i], by);
  return a;
}
static inline Bytes to_bytes(Words a) {
  Bytes r;
  for (int i = 0; i < 4; ++i) split(r, i, vreinterpretq_u8_u32(a.v[i]));
  return r;
}

#else

struct Words { uint32_t v[kLanes]; };
static inline Words load_words(const uint8_t* p) {
  Words r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
static inline Words operator|(Words a, Words b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] |= b.v[i];
  return a;
}
static inline Words mask_bytes(Words a, int mask) {
  for (uint32_t& word : a.v) word &= static_cast<uint32_t>(mask) * 0x01010101u;
  return a;
}
template <int kBits>
static inline Words move_left(Words a) {
  for (uint32_t& word : a.v) {
    if constexpr (kBits >= 0) word <<= kBits;
    else word >>= -kBits;
  }
  return a;
}
static inline Bytes to_bytes(Words a) {
  Bytes r;
  std::memcpy(r.v, a.v, sizeof r.v);
  return r;
}

#endif

constexpr int64_t kPanelWordBytes = kPanelRows * 4;

// Inputs of a run and its 32-bit words; run_of() of the kind with so many bits.
template <int kBits>
constexpr int kRunInputs = kBits == 8 ? 4 : kBits == 4 ? 8 : kBits == 6 ? 16 : 32;
template <int kBits>
constexpr int kRunWords = kRunInputs<kBits> * kBits / 32;

// Quad kQuad of a run at `run`, of the sixteen outputs that begin at it.
template <int kBits, int kQuad>
static inline Bytes load_codes(const uint8_t* run) {
  if constexpr (kBits == 8) {
    return load_bytes(run);
  } else if constexpr (kBits == 4) {
    return kQuad == 0 ? load_low_nibbles(run) : load_high_nibbles(run);
  } else {
    constexpr int high_bits = kBits - 4, high_mask = (1 << high_bits) - 1;
    const Words nibbles = load_words(run + kQuad / 2 * kPanelWordBytes);
    const Words low = mask_bytes(move_left<kQuad % 2 ? -4 : 0>(nibbles), 15);
    const Words high = load_words(run + (kRunWords<kBits> - 1) * kPanelWordBytes);
    return to_bytes(low | mask_bytes(move_left<4 - kQuad * high_bits>(high), high_mask << 4));
  }
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
