// Dot products of bytes: sixteen int32 lanes, each the exact sum of four products unsigned x signed. One implementation per
// instruction-set level, the same results on all: integer sums have no rounding. They wrap around, modulo 2^32.
#pragma once

#include "simd.h"

namespace quire {
namespace QUIRE_LEVEL {

// ---------------------------------------------------------------- AVX-512
#if defined(__AVX512F__)

struct I32x16 { __m512i v; };

static inline I32x16 splat_int(int32_t a) { return {_mm512_set1_epi32(a)}; }
static inline I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline void store_int(int32_t* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }

// To nearest even.
static inline I32x16 round_to_int(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
template <int kBits>
static inline I32x16 shift_left(I32x16 a) { return {_mm512_slli_epi32(a.v, kBits)}; }
// Of signed numbers.
template <int kBits>
static inline I32x16 shift_right(I32x16 a) { return {_mm512_srai_epi32(a.v, kBits)}; }
static inline void store_low_bytes(int8_t* p, I32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

// Rounds to nearest even, stores as bytes (saturated) and returns what was stored.
static inline I32x16 store_bytes(int8_t* p, F32x16 a) {
  const I32x16 rounded = round_to_int(a);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(rounded.v));
  return rounded;
}

static inline F32x16 load_bytes_as_float(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
// The four bits of each byte from kFirst on.
template <int kFirst>
static inline F32x16 load_nibbles_as_float(const uint8_t* p) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(bytes, kFirst), _mm512_set1_epi32(15)))};
}

#if defined(__AVX512VNNI__)

struct Bytes { __m512i v; };         // 16 lanes of 4 unsigned bytes
struct Broadcast { __m512i v; };     // the same 4 signed bytes in every lane

static inline Bytes as_bytes(__m512i v) { return {v}; }
static inline Broadcast broadcast(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return {_mm512_set1_epi32(four)};
}
// The tied operand of the assembly keeps the accumulator in its register: GCC 12 copies it around the intrinsic.
static inline I32x16 dot(I32x16 sum, Bytes w, Broadcast a) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(w.v), "v"(a.v));
  return sum;
}

#else

struct Bytes { __m512i even, odd; };        // unsigned bytes 0, 2 and 1, 3 of each lane as 16-bit numbers
struct Broadcast { __m512i even, odd; };    // signed

static inline Bytes as_bytes(__m512i v) {
  return {_mm512_and_si512(v, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(v, 8)};
}
static inline Broadcast broadcast(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  const __m512i v = _mm512_set1_epi32(four);
  return {_mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8), _mm512_srai_epi16(v, 8)};
}
// Four numbers of 16 bits as store_quads leaves them.
static inline Broadcast broadcast_quad(const int16_t* p) {
  int32_t pairs[2];
  std::memcpy(pairs, p, sizeof pairs);
  return {_mm512_set1_epi32(pairs[0]), _mm512_set1_epi32(pairs[1])};
}
// As numbers of 16 bits; of each four those that meet bytes 0 and 2 come first.
static inline void store_quads(int16_t* p, I32x16 a) {
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(a.v), order));
}
static inline I32x16 dot(I32x16 sum, Bytes w, Broadcast a) {
  const __m512i even = _mm512_madd_epi16(w.even, a.even), odd = _mm512_madd_epi16(w.odd, a.odd);
  return {_mm512_add_epi32(sum.v, _mm512_add_epi32(even, odd))};
}

#endif

static inline __m512i raw(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline Bytes load_bytes(const uint8_t* p) { return as_bytes(raw(p)); }
static inline Bytes load_low_nibbles(const uint8_t* p) {
  return as_bytes(_mm512_and_si512(raw(p), _mm512_set1_epi8(15)));
}
static inline Bytes load_high_nibbles(const uint8_t* p) {
  return as_bytes(_mm512_and_si512(_mm512_srli_epi16(raw(p), 4), _mm512_set1_epi8(15)));
}
static inline Bytes load_high_nibbles_times_16(const uint8_t* p) {
  return as_bytes(_mm512_and_si512(raw(p), _mm512_set1_epi8(static_cast<char>(0xf0))));
}

// ---------------------------------------------------------------- AVX2
#elif defined(__AVX2__)

struct I32x16 { __m256i lo, hi; };

static inline I32x16 splat_int(int32_t a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
static inline I32x16 operator+(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
static inline F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
static inline void store_int(int32_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}

static inline I32x16 round_to_int(F32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
template <int kBits>
static inline I32x16 shift_left(I32x16 a) { return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)}; }
template <int kBits>
static inline I32x16 shift_right(I32x16 a) { return {_mm256_srai_epi32(a.lo, kBits), _mm256_srai_epi32(a.hi, kBits)}; }
static inline void store_low_bytes(int8_t* p, I32x16 a) {
  const __m256i low = _mm256_set1_epi32(0xff);
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(_mm256_and_si256(a.lo, low), _mm256_and_si256(a.hi, low)), 0xd8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

static inline I32x16 store_bytes(int8_t* p, F32x16 a) {
  const I32x16 rounded = round_to_int(a);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(rounded.lo, rounded.hi), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  return rounded;
}

static inline F32x16 load_bytes_as_float(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
template <int kFirst>
static inline F32x16 load_nibbles_as_float(const uint8_t* p) {
  uint8_t nibbles[kLanes];
  const __m128i bytes = _mm_srli_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), kFirst);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(nibbles), _mm_and_si128(bytes, _mm_set1_epi8(15)));
  return load_bytes_as_float(nibbles);
}

struct Bytes { __m256i even_lo, odd_lo, even_hi, odd_hi; };
struct Broadcast { __m256i even, odd; };

static inline Bytes as_bytes(__m256i lo, __m256i hi) {
  const __m256i mask = _mm256_set1_epi16(0xff);
  return {_mm256_and_si256(lo, mask), _mm256_srli_epi16(lo, 8), _mm256_and_si256(hi, mask), _mm256_srli_epi16(hi, 8)};
}
static inline Broadcast broadcast(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  const __m256i v = _mm256_set1_epi32(four);
  return {_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
}
static inline Broadcast broadcast_quad(const int16_t* p) {
  int32_t pairs[2];
  std::memcpy(pairs, p, sizeof pairs);
  return {_mm256_set1_epi32(pairs[0]), _mm256_set1_epi32(pairs[1])};
}
static inline void store_quads(int16_t* p, I32x16 a) {
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_shuffle_epi8(words, order));
}
static inline I32x16 dot(I32x16 sum, const Bytes& w, Broadcast a) {
  const __m256i lo = _mm256_add_epi32(_mm256_madd_epi16(w.even_lo, a.even), _mm256_madd_epi16(w.odd_lo, a.odd));
  const __m256i hi = _mm256_add_epi32(_mm256_madd_epi16(w.even_hi, a.even), _mm256_madd_epi16(w.odd_hi, a.odd));
  return {_mm256_add_epi32(sum.lo, lo), _mm256_add_epi32(sum.hi, hi)};
}

static inline __m256i raw(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
static inline Bytes load_bytes(const uint8_t* p) { return as_bytes(raw(p), raw(p + 32)); }
static inline Bytes load_low_nibbles(const uint8_t* p) {
  const __m256i mask = _mm256_set1_epi8(15);
  return as_bytes(_mm256_and_si256(raw(p), mask), _mm256_and_si256(raw(p + 32), mask));
}
static inline Bytes load_high_nibbles(const uint8_t* p) {
  const __m256i mask = _mm256_set1_epi8(15);
  return as_bytes(_mm256_and_si256(_mm256_srli_epi16(raw(p), 4), mask),
                  _mm256_and_si256(_mm256_srli_epi16(raw(p + 32), 4), mask));
}
static inline Bytes load_high_nibbles_times_16(const uint8_t* p) {
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(0xf0));
  return as_bytes(_mm256_and_si256(raw(p), mask), _mm256_and_si256(raw(p + 32), mask));
}

// ---------------------------------------------------------------- NEON (aarch64)
#elif defined(QUIRE_NEON)

struct I32x16 { int32x4_t v[4]; };

static inline I32x16 splat_int(int32_t a) {
  const int32x4_t v = vdupq_n_s32(a);
  return {{v, v, v, v}};
}
static inline I32x16 operator+(I32x16 a, I32x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vaddq_s32(a.v[i], b.v[i]);
  return a;
}
static inline F32x16 to_float(I32x16 a) {
  F32x16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vcvtq_f32_s32(a.v[i]);
  return r;
}
static inline void store_int(int32_t* p, I32x16 a) {
  for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, a.v[i]);
}

static inline I32x16 round_to_int(F32x16 a) {
  // What x86 makes of NaN and of numbers out of range: the smallest integer.
  const float32x4_t limit = vdupq_n_f32(2147483648.0f);
  I32x16 r;
  for (int i = 0; i < 4; ++i)
    r.v[i] = vbslq_s32(vcaltq_f32(a.v[i], limit), vcvtnq_s32_f32(a.v[i]), vdupq_n_s32(INT32_MIN));
  return r;
}
template <int kBits>
static inline I32x16 shift_left(I32x16 a) {
  for (int i = 0; i < 4; ++i) a.v[i] = vshlq_n_s32(a.v[i], kBits);
  return a;
}
template <int kBits>
static inline I32x16 shift_right(I32x16 a) {
  for (int i = 0; i < 4; ++i) a.v[i] = vshrq_n_s32(a.v[i], kBits);
  return a;
}
static inline void store_low_bytes(int8_t* p, I32x16 a) {
  const int16x8_t lo = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
  const int16x8_t hi = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
}

static inline I32x16 store_bytes(int8_t* p, F32x16 a) {
  const I32x16 r = round_to_int(a);
  const int16x8_t lo = vcombine_s16(vqmovn_s32(r.v[0]), vqmovn_s32(r.v[1]));
  const int16x8_t hi = vcombine_s16(vqmovn_s32(r.v[2]), vqmovn_s32(r.v[3]));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(lo), vqmovn_s16(hi)));
  return r;
}

static inline F32x16 load_bytes_as_float(const uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  const uint16x8_t lo = vmovl_u8(vget_low_u8(bytes)), hi = vmovl_u8(vget_high_u8(bytes));
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(lo))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(lo))),
           vcvtq_f32_u32(vmovl_u16(vget_low_u16(hi))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(hi)))}};
}
template <int kFirst>
static inline F32x16 load_nibbles_as_float(const uint8_t* p) {
  uint8_t nibbles[kLanes];
  vst1q_u8(nibbles, vandq_u8(vshlq_u8(vld1q_u8(p), vdupq_n_s8(-kFirst)), vdupq_n_u8(15)));
  return load_bytes_as_float(nibbles);
}

struct Bytes { int16x8_t even[4], odd[4]; };    // unsigned bytes 0, 2 and 1, 3 of each lane as 16-bit numbers
struct Broadcast { int16x4_t even, odd; };      // signed

static inline void split(Bytes& bytes, int i, uint8x16_t v) {
  const uint16x8_t words = vreinterpretq_u16_u8(v);
  bytes.even[i] = vreinterpretq_s16_u16(vandq_u16(words, vdupq_n_u16(0xff)));
  bytes.odd[i] = vreinterpretq_s16_u16(vshrq_n_u16(words, 8));
}
static inline Broadcast broadcast(const int8_t* p) {
  const int16_t even[4] = {p[0], p[2], p[0], p[2]}, odd[4] = {p[1], p[3], p[1], p[3]};
  return {vld1_s16(even), vld1_s16(odd)};
}
static inline Broadcast broadcast_quad(const int16_t* p) {
  const int16_t even[4] = {p[0], p[1], p[0], p[1]}, odd[4] = {p[2], p[3], p[2], p[3]};
  return {vld1_s16(even), vld1_s16(odd)};
}
static inline void store_quads(int16_t* p, I32x16 a) {
  for (int i = 0; i < 4; ++i, p += 4) {
    int16_t four[4];
    vst1_s16(four, vmovn_s32(a.v[i]));
    p[0] = four[0], p[1] = four[2], p[2] = four[1], p[3] = four[3];
  }
}
static inline I32x16 dot(I32x16 sum, const Bytes& w, Broadcast a) {
  for (int i = 0; i < 4; ++i) {
    int32x4_t lo = vmull_s16(vget_low_s16(w.even[i]), a.even), hi = vmull_s16(vget_high_s16(w.even[i]), a.even);
    lo = vmlal_s16(lo, vget_low_s16(w.odd[i]), a.odd);
    hi = vmlal_s16(hi, vget_high_s16(w.odd[i]), a.odd);
    sum.v[i] = vaddq_s32(sum.v[i], vpaddq_s32(lo, hi));
  }
  return sum;
}

static inline Bytes load_bytes(const uint8_t* p) {
  Bytes r;
  for (int i = 0; i < 4; ++i) split(r, i, vld1q_u8(p + 16 * i));
  return r;
}
static inline Bytes load_low_nibbles(const uint8_t* p) {
  Bytes r;
  for (int i = 0; i < 4; ++i) split(r, i, vandq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(15)));
  return r;
}
static inline Bytes load_high_nibbles(const uint8_t* p) {
  Bytes r;
  for (int i = 0; i < 4; ++i) split(r, i, vshrq_n_u8(vld1q_u8(p + 16 * i), 4));
  return r;
}
static inline Bytes load_high_nibbles_times_16(const uint8_t* p) {
  Bytes r;
  for (int i = 0; i < 4; ++i) split(r, i, vandq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(0xf0)));
  return r;
}

// ---------------------------------------------------------------- plain C++
#else

struct I32x16 { int32_t v[kLanes]; };
struct Bytes { uint8_t v[4 * kLanes]; };
struct Broadcast { int16_t v[4]; };

static inline I32x16 splat_int(int32_t a) {
  I32x16 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = a;
  return r;
}
static inline I32x16 operator+(I32x16 a, I32x16 b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i]));
  return a;
}
static inline F32x16 to_float(I32x16 a) {
  F32x16 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
static inline void store_int(int32_t* p, I32x16 a) { std::memcpy(p, a.v, sizeof a.v); }

static inline I32x16 round_to_int(F32x16 a) {
  I32x16 r;
  const F32x16 rounded = round_even(a);
  for (int i = 0; i < kLanes; ++i)  // what x86 makes of NaN and of numbers out of range
    r.v[i] = __builtin_fabsf(rounded.v[i]) < 2147483648.0f ? static_cast<int32_t>(rounded.v[i]) : INT32_MIN;
  return r;
}
template <int kBits>
static inline I32x16 shift_left(I32x16 a) {
  for (int32_t& x : a.v) x = static_cast<int32_t>(static_cast<uint32_t>(x) << kBits);
  return a;
}
template <int kBits>
static inline I32x16 shift_right(I32x16 a) {
  for (int32_t& x : a.v) x >>= kBits;
  return a;
}
static inline void store_low_bytes(int8_t* p, I32x16 a) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}

static inline I32x16 store_bytes(int8_t* p, F32x16 a) {
  const I32x16 r = round_to_int(a);
  for (int i = 0; i < kLanes; ++i) {
    const int32_t high = r.v[i] > 127 ? 127 : r.v[i];
    p[i] = static_cast<int8_t>(high < -128 ? -128 : high);
  }
  return r;
}

static inline F32x16 load_bytes_as_float(const uint8_t* p) {
  F32x16 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = static_cast<float>(p[i]);
  return r;
}
template <int kFirst>
static inline F32x16 load_nibbles_as_float(const uint8_t* p) {
  F32x16 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = static_cast<float>(p[i] >> kFirst & 15);
  return r;
}

static inline Broadcast broadcast(const int8_t* p) {
  return {{p[0], p[1], p[2], p[3]}};
}
static inline Broadcast broadcast_quad(const int16_t* p) { return {{p[0], p[2], p[1], p[3]}}; }
static inline void store_quads(int16_t* p, I32x16 a) {
  for (int i = 0; i < kLanes; i += 4, p += 4) {
    p[0] = static_cast<int16_t>(a.v[i]), p[1] = static_cast<int16_t>(a.v[i + 2]);
    p[2] = static_cast<int16_t>(a.v[i + 1]), p[3] = static_cast<int16_t>(a.v[i + 3]);
  }
}
static inline I32x16 dot(I32x16 sum, const Bytes& w, Broadcast a) {
  for (int i = 0; i < kLanes; ++i) {
    int32_t products = 0;
    for (int j = 0; j < 4; ++j) products += static_cast<int32_t>(w.v[4 * i + j]) * a.v[j];
    sum.v[i] = static_cast<int32_t>(static_cast<uint32_t>(sum.v[i]) + static_cast<uint32_t>(products));
  }
  return sum;
}
static inline Bytes load_bytes(const uint8_t* p) {
  Bytes r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
static inline Bytes load_low_nibbles(const uint8_t* p) {
  Bytes r = load_bytes(p);
  for (uint8_t& byte : r.v) byte &= 15;
  return r;
}
static inline Bytes load_high_nibbles(const uint8_t* p) {
  Bytes r = load_bytes(p);
  for (uint8_t& byte : r.v) byte >>= 4;
  return r;
}
static inline Bytes load_high_nibbles_times_16(const uint8_t* p) {
  Bytes r = load_bytes(p);
  for (uint8_t& byte : r.v) byte &= 0xf0;
  return r;
}

#endif

// Sum of the lanes.
static inline int32_t reduce_add_int(I32x16 a) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32(a.v);
#else
  int32_t lane[kLanes], sum = 0;
  store_int(lane, a);
  for (int32_t x : lane) sum += x;
  return sum;
#endif
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
