// Codes of uint2 to uint8 and lookup4 as unsigned bytes: four inputs of sixteen outputs, put together from a panel's words (weight_format.h).
#pragma once

#include "dot.h"
#include "weight_format.h"

namespace quire {
namespace QUIRE_LEVEL {

// Sixteen 32-bit words of a panel; operations are on each word or byte alone. look_up: of bytes below 16.
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

struct ByteTable { __m512i v; };
static inline ByteTable load_table(const uint8_t* p) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
static inline Words look_up(const ByteTable& table, Words a) { return {_mm512_shuffle_epi8(table.v, a.v)}; }

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

struct ByteTable { __m256i v; };
static inline ByteTable load_table(const uint8_t* p) {
  return {_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
static inline Words look_up(const ByteTable& table, Words a) {
  return {_mm256_shuffle_epi8(table.v, a.lo), _mm256_shuffle_epi8(table.v, a.hi)};
}

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

struct ByteTable { uint8x16_t v; };
static inline ByteTable load_table(const uint8_t* p) { return {vld1q_u8(p)}; }
static inline Words look_up(const ByteTable& table, Words a) {
  for (int i = 0; i < 4; ++i) a.v[i] = vreinterpretq_u32_u8(vqtbl1q_u8(table.v, vreinterpretq_u8_u32(a.v[i])));
  return a;
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

struct ByteTable { uint8_t v[16]; };
static inline ByteTable load_table(const uint8_t* p) {
  ByteTable table;
  std::memcpy(table.v, p, sizeof table.v);
  return table;
}
static inline Words look_up(const ByteTable& table, Words a) {
  uint8_t bytes[4 * kLanes];
  std::memcpy(bytes, a.v, sizeof bytes);
  for (uint8_t& byte : bytes) byte = table.v[byte];
  std::memcpy(a.v, bytes, sizeof bytes);
  return a;
}

#endif

constexpr int64_t kPanelWordBytes = kPanelRows * 4;

// Quad kQuad of a run at `run`, of the sixteen outputs that begin at it; see low_bits in weight_format.h.
template <int kBits, int kQuad>
static inline Words load_codes(const uint8_t* run) {
  constexpr int kLow = low_bits(kBits), kHigh = high_bits(kBits), kQuads = 8 / kLow;   // of a word
  const Words word = load_words(run + kQuad / kQuads * kPanelWordBytes);
  if constexpr (kLow == 8) return word;
  const Words low = mask_bytes(move_left<-(kQuad % kQuads * kLow)>(word), (1 << kLow) - 1);
  if constexpr (kHigh == 0) return low;
  const Words high = load_words(run + (run_words(kBits) - 1) * kPanelWordBytes);
  return low | mask_bytes(move_left<kLow - kQuad * kHigh>(high), ((1 << kHigh) - 1) << kLow);
}

// uint2 to uint8: codes are the values.
template <int kNumBits>
struct PlainCodes {
  static constexpr int kBits = kNumBits;
  explicit PlainCodes(const WeightView&) {}
  template <int kQuad>
  inline Bytes load(const uint8_t* run) const { return to_bytes(load_codes<kBits, kQuad>(run)); }
};

// lookup4: codes stand for integers of a table, here raised to be unsigned.
struct LookedUpCodes {
  static constexpr int kBits = 4;
  explicit LookedUpCodes(const WeightView& weight) {
    uint8_t bytes[16];
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(weight.table[i]) + kLookupOffset);
    table = load_table(bytes);
  }
  template <int kQuad>
  inline Bytes load(const uint8_t* run) const { return to_bytes(look_up(table, load_codes<kBits, kQuad>(run))); }

  ByteTable table;
};

}  // namespace QUIRE_LEVEL
}  // namespace quire
