// Pairs of bfloat16, and their product: the odd inputs' and then the even inputs', two fused multiply-adds. It is what
// vdpbf16ps does, and what the levels without it do in float32; the same bits as long as no number is denormal (vdpbf16ps takes
// those for zero).
#pragma once

#include "simd.h"

namespace quire {
namespace QUIRE_LEVEL {

#if defined(__AVX512BF16__)

struct Pairs { __m512i v; };  // 16 lanes of 2 bfloat16

static inline Pairs load_pairs(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_pairs(uint32_t* p, Pairs a) { _mm512_storeu_si512(p, a.v); }
static inline Pairs broadcast_pair(uint32_t pair) { return {_mm512_set1_epi32(static_cast<int32_t>(pair))}; }
// The tied operand keeps the accumulator in its register: GCC 12 copies it around the intrinsic.
static inline F32x16 dot(F32x16 sum, Pairs w, Pairs a) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum.v) : "v"(w.v), "v"(a.v));
  return sum;
}

#else

struct Pairs { F32x16 even, odd; };

static inline Pairs load_pairs(const uint32_t* p) { return {low_half(p), high_half(p)}; }
static inline void store_pairs(uint32_t* p, const Pairs& a) { store_halves(p, a.even, a.odd); }
static inline Pairs broadcast_pair(uint32_t pair) { return {splat(float_of(pair << 16)), splat(float_of(pair & 0xffff0000u))}; }
static inline F32x16 dot(F32x16 sum, const Pairs& w, const Pairs& a) { return fma(w.even, a.even, fma(w.odd, a.odd, sum)); }

#endif

}  // namespace QUIRE_LEVEL
}  // namespace quire
