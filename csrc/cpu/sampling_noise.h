// The exponential noise of the sampler; quire/ops/sampling/random.py defines it and says why it is made of blocks.
#pragma once

#include "simd_f64.h"

namespace quire {
namespace QUIRE_LEVEL {

constexpr int64_t kNoiseBlock = 64;

// Which noise: one row's seed and position.
struct NoiseKey {
  uint64_t low, high;  // halves of the seed
  uint64_t position;
};

static inline NoiseKey noise_key(int64_t seed, int64_t position) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  return {bits & 0xffffffff, bits >> 32, static_cast<uint64_t>(position) & 0xffffffff};
}

struct Philox { U64x8 word[4]; };

// Philox4x32-10 of eight counters (index, position, stream, 0) (Salmon et al., SC'11). Between rounds the high halves of the
// lanes hold rubbish: a multiplication reads low halves only.
static inline Philox philox(U64x8 index, const NoiseKey& key, uint64_t stream) {
  const U64x8 multiplier0 = splat_u64(0xD2511F53), multiplier1 = splat_u64(0xCD9E8D57);
  U64x8 c0 = index, c1 = splat_u64(key.position), c2 = splat_u64(stream), c3 = splat_u64(0);
  uint32_t k0 = static_cast<uint32_t>(key.low), k1 = static_cast<uint32_t>(key.high);
  for (int round = 0; round < 10; ++round) {
    const U64x8 product0 = multiply_low(c0, multiplier0), product1 = multiply_low(c2, multiplier1);
    c0 = shift_right<32>(product1) ^ c1 ^ splat_u64(k0);
    c2 = shift_right<32>(product0) ^ c3 ^ splat_u64(k1);
    c1 = product1;
    c3 = product0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const U64x8 word = splat_u64(0xffffffff);
  return {{c0 & word, c1 & word, c2 & word, c3 & word}};
}

struct BlockMinima {
  F64x8 noise;   // the smallest noise of each block
  U64x8 places;  // and which of its tokens has it
};

static inline BlockMinima block_minima(U64x8 blocks, const NoiseKey& key) {
  const Philox random = philox(blocks, key, 1);
  // The top 53 of 64 bits, high word first.
  const F64x8 fine = to_f64(random.word[1]) * splat64(0x1p21) + to_f64(shift_right<11>(random.word[0]));
  const F64x8 uniform = (fine + splat64(0.5)) * splat64(0x1p-53);
  return {log(uniform) * splat64(-1.0 / kNoiseBlock), random.word[2] & splat_u64(kNoiseBlock - 1)};
}

// log of the noise of each token of one block.
static inline void log_noise(double* out, int64_t block, double minimum, uint64_t place, const NoiseKey& key) {
  const uint64_t steps[kLanes64] = {0, 1, 2, 3, 4, 5, 6, 7};
  for (uint64_t half = 0; half < 2; ++half) {
    const uint64_t first = static_cast<uint64_t>(block) * (kNoiseBlock / 4) + half * kLanes64;
    const Philox random = philox(splat_u64(first) + load_u64(steps), key, 0);
    for (int word = 0; word < 4; ++word) {
      const F64x8 uniform = (to_f64(random.word[word]) + splat64(0.5)) * splat64(0x1p-32);
      double lane[kLanes64];
      store(lane, log(splat64(minimum) - log(uniform)));
      for (uint64_t i = 0; i < kLanes64; ++i) out[(half * kLanes64 + i) * 4 + static_cast<uint64_t>(word)] = lane[i];
    }
  }
  double lane[kLanes64];
  store(lane, log(splat64(minimum)));
  out[place] = lane[0];
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
