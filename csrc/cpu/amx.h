// AMX as the kernels use it: eight tile registers of up to 16 rows x 64 bytes, and products that add A * B to C, where A is
// [rows, inputs], B is [inputs / n][outputs][n] (n inputs in each 32-bit word) and C is [rows, outputs] of 32-bit sums.
// Intel Software Developer's Manual, volume 1, chapter 18 and volume 2.
//
// Inline assembly in place of the compiler's intrinsics: GCC 12's tile loads do not say that they read memory, and they take
// no template argument.
#pragma once

#include <cstdint>

#if defined(__AMX_TILE__)

namespace quire {
namespace QUIRE_LEVEL {

constexpr int kNumTiles = 8, kMaxTileRows = 16, kTileRowBytes = 64;

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};   // of the eight tiles; the rest is reserved
  uint8_t rows[16] = {};         // likewise

  void set(int tile, int64_t num_rows, int64_t num_bytes) {
    rows[tile] = static_cast<uint8_t>(num_rows);
    row_bytes[tile] = static_cast<uint16_t>(num_bytes);
  }
};
static_assert(sizeof(TileConfig) == 64);

// The thread's tiles from now on, all zero.
static inline void configure_tiles(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }

// The thread needs no tiles any more: a core with tiles in use saves more registers, and sleeps less deep.
static inline void release_tiles() { asm volatile("tilerelease"); }

template <int kTile>
static inline void zero_tile() { asm volatile("tilezero %%tmm%c0" : : "i"(kTile)); }

template <int kTile>
static inline void load_tile(const void* rows, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
static inline void store_tile(void* rows, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
}

// C += A * B for signed bytes of A and unsigned bytes of B, in int32.
template <int kC, int kA, int kB>
static inline void multiply_bytes() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

// C += A * B for bfloat16 in float32: the products of the even inputs in one chain of fused multiply-adds that starts at zero,
// those of the odd ones in another, the sum of both added to C; denormal numbers count as zero.
template <int kC, int kA, int kB>
static inline void multiply_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

}  // namespace QUIRE_LEVEL
}  // namespace quire

#endif
