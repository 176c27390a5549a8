// How one layer's paged KV cache lies in memory.
#pragma once

#include <cstdint>

namespace quire {

// The codes that Python passes; exported by bind_attention.cpp.
enum class KVDType : int { float32 = 0, bfloat16 = 1, float16 = 2, int8 = 3, float8 = 4 };

// For each block and KV head, with P numbers to a word: keys [ceil(D / P)][B] words, each of P components of one token, and
// values [ceil(B / P)][D] words, each of one component of P tokens: what a dot product takes per 32-bit lane. Components
// beyond D are zero, tokens beyond B undefined. A byte of int8 is its number + 128; those of float8 lie in the order 0, 2, 1, 3,
// so that low and high bytes of 16 bits are pairs. Behind either follow B float32 scales, one per token: element = number * scale.
// Those of float8 are powers of two, or 0, or NaN.
//
// A latent cache has one KV head and one pool, of keys in two parts: value_dim components, which are the values too, and a tail.
// Each part begins a word of its own, and in int8 has its own B scales, the tail's behind the others.
struct KVPools {
  void* keys;
  void* values;         // null: a latent cache
  int64_t block_size, num_kv_heads;
  int64_t head_dim;     // D; in a latent cache with what fills the first part's last word
  KVDType dtype;
  int64_t value_dim;    // D unless the cache is latent
};

static inline bool is_latent(const KVPools& pools) { return pools.keys && !pools.values; }

constexpr int kByteZero = 128;  // the byte that stands for 0 in int8

static inline bool has_scales(KVDType dtype) { return dtype == KVDType::int8 || dtype == KVDType::float8; }

static inline int64_t numbers_per_word(KVDType dtype) {
  return has_scales(dtype) ? 4 : dtype == KVDType::bfloat16 ? 2 : 1;
}

static inline int64_t num_words(const KVPools& pools, int64_t numbers) {
  const int64_t per_word = numbers_per_word(pools.dtype);
  return (numbers + per_word - 1) / per_word;
}

// The first component of a latent cache's tail.
static inline int64_t tail_start(const KVPools& pools) { return num_words(pools, pools.value_dim) * numbers_per_word(pools.dtype); }

static inline int64_t bytes_per_word(KVDType dtype) { return dtype == KVDType::float16 ? 2 : 4; }

// Bytes of a block and head: its numbers, and all of it.
static inline int64_t key_number_bytes(const KVPools& pools) {
  return num_words(pools, pools.head_dim) * pools.block_size * bytes_per_word(pools.dtype);
}
static inline int64_t value_number_bytes(const KVPools& pools) {
  return num_words(pools, pools.block_size) * pools.head_dim * bytes_per_word(pools.dtype);
}
static inline int64_t scale_bytes(const KVPools& pools) {
  const int64_t per_token = has_scales(pools.dtype) ? sizeof(float) : 0;
  return pools.block_size * per_token * (is_latent(pools) ? 2 : 1);
}
static inline int64_t key_bytes(const KVPools& pools) { return key_number_bytes(pools) + scale_bytes(pools); }
static inline int64_t value_bytes(const KVPools& pools) { return value_number_bytes(pools) + scale_bytes(pools); }

}  // namespace quire
