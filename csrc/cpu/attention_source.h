// Where a chunk's keys and values lie: in the pools, or copied from there. For attention.inc alone.
#pragma once

#include "attention_tile.h"
#include "float8.h"

namespace quire {
namespace QUIRE_LEVEL {
namespace {

// What a type of cache holds: words of numbers, and words as they are copied (float8 as pairs of bfloat16).
template <typename T> struct Stored { using Word = T; using Copy = float; static constexpr int64_t per_word = 1; };
template <> struct Stored<bf16> { using Word = uint32_t; using Copy = uint32_t; static constexpr int64_t per_word = 2; };
template <> struct Stored<int8_t> { using Word = uint32_t; using Copy = uint32_t; static constexpr int64_t per_word = 4; };
template <> struct Stored<f8> { using Word = uint32_t; using Copy = uint32_t; static constexpr int64_t per_word = 4; };

template <typename T> constexpr bool kHasScales = false;
template <> constexpr bool kHasScales<int8_t> = true;
template <> constexpr bool kHasScales<f8> = true;

// Whether numbers are always widened before they are multiplied.
template <typename T> constexpr bool kWidens = false;
template <> constexpr bool kWidens<f8> = true;

// One KV head in one pool.
struct Pool {
  const char* data;
  int64_t block_bytes;   // from a block to the next
  int64_t number_bytes;  // after which a block's scales come
};

// One token in one pool.
struct Place {
  const char* block;
  int64_t offset;  // tokens before it in the block
};

// One request's tokens of one KV head.
template <typename T>
struct Source {
  using Word = typename Stored<T>::Word;

  Pool keys, values;
  const int32_t* block_table;
  int64_t block_size, dim;

  // In both pools. (A division: ask once for tokens of a block.)
  struct Places { Place key, value; };
  Places find(int64_t token) const {
    const int64_t index = token / block_size, offset = token - index * block_size, block = block_table[index];
    return {{keys.data + block * keys.block_bytes, offset}, {values.data + block * values.block_bytes, offset}};
  }
  static const Word* key(Place at) { return reinterpret_cast<const Word*>(at.block) + at.offset; }
  // The word that a token's first component lies in.
  const Word* value(Place at) const {
    return reinterpret_cast<const Word*>(at.block) + at.offset / Stored<T>::per_word * dim;
  }
  // Where a group's numbers start in either pool, if heads and blocks are regular.
  const char* numbers(Place at) const { return at.block + at.offset * dim * static_cast<int64_t>(sizeof(T)); }
  static const float* scale(const Pool& pool, Place at) {
    return reinterpret_cast<const float*>(at.block + pool.number_bytes) + at.offset;
  }
  const float* tail_scale(Place at) const { return scale(keys, at) + block_size; }
  bool is_latent() const { return keys.data == values.data; }
};

template <typename T>
Source<T> make_source(const PagedAttentionArgs& args, int64_t request, int64_t head) {
  const KVPools& pools = args.pools;
  const int64_t key_size = key_bytes(pools), value_size = value_bytes(pools), heads = pools.num_kv_heads;
  const Pool keys = {static_cast<const char*>(pools.keys) + head * key_size, heads * key_size, key_number_bytes(pools)};
  const Pool values = {static_cast<const char*>(pools.values) + head * value_size, heads * value_size, value_number_bytes(pools)};
  return {keys, is_latent(pools) ? keys : values,
          args.layout->block_tables + request * args.layout->max_blocks, pools.block_size, pools.head_dim};
}

// Room for what cannot be read where it lies.
struct Buffers {
  float* keys;          // words [kGroups][words of D][16]
  float* values;        // words [words of kChunk][padded(value_dim)]
  float* key_scales;    // [kChunk]
  float* value_scales;  // [kChunk]
  float* tail_scales;   // [kChunk]
};

// Whether vectors of sixteen tokens and of sixteen components lie in the pools as the tiles want them.
bool is_regular(const KVPools& pools) { return pools.block_size % kLanes == 0 && pools.head_dim % kLanes == 0; }

constexpr int64_t kFewTiles = 4;  // that do not keep the processor busy while memory answers

// Whether a chunk's words are copied as they are, not widened.
template <typename T>
constexpr bool kCopiesWords = sizeof(typename Stored<T>::Word) == sizeof(typename Stored<T>::Copy);

// Many tiles had better widen a chunk's numbers once, and so had what makes values of them.
template <typename T>
bool reads_in_place(const KVPools& pools, int64_t num_tiles) {
  return !kWidens<T> && is_regular(pools) && (kCopiesWords<T> || (num_tiles <= kFewTiles && !is_latent(pools)));
}

// Tokens [begin, end) of the chunk, in place.
template <typename T>
void find_chunk(const Source<T>& source, int64_t begin, int64_t end, const Buffers& buffers,
                Chunk<typename Stored<T>::Word>* chunk) {
  chunk->key_stride = source.block_size;
  chunk->value_stride = source.dim;
  for (int64_t g = begin / kLanes; g * kLanes < end; ++g) {
    const auto [key, value] = source.find(chunk->first_token + g * kLanes);
    chunk->keys[g] = source.key(key);
    chunk->values[g] = source.value(value);
    if constexpr (kHasScales<T>) {
      store(buffers.key_scales + g * kLanes, load(source.scale(source.keys, key)));
      store(buffers.value_scales + g * kLanes, load(source.scale(source.values, value)));
      if (source.is_latent()) store(buffers.tail_scales + g * kLanes, load(source.tail_scale(key)));
    }
  }
}

// `n` <= 16 words, copied or widened.
template <typename T>
void copy_words(float* out, const T* x, int64_t n) {
  if (n == kLanes) store(out, load(x));
  else if (n == kLanes / 2) store_first(out, load_first(x, kLanes / 2), kLanes / 2);  // constant sizes: no calls
  else store_first(out, load_first(x, n), n);
}
void copy_words(uint32_t* out, const uint32_t* x, int64_t n) {
  if (n == kLanes) std::memcpy(out, x, kLanes * sizeof *x);
  else if (n == kLanes / 2) std::memcpy(out, x, kLanes / 2 * sizeof *x);
  else std::memcpy(out, x, static_cast<size_t>(n) * sizeof *x);
}

// Values of tokens [t, t + n) of the chunk, which lie in one block from `at` on.
template <typename T>
void copy_values(const Source<T>& source, Place at, int64_t t, int64_t n, const Buffers& buffers) {
  using Copy = typename Stored<T>::Copy;
  constexpr int64_t per_word = Stored<T>::per_word;
  const int64_t width = padded(source.dim);
  if (source.block_size % per_word == 0) {
    for (int64_t i = 0; i < n; i += per_word) {
      const auto* words = source.value({at.block, at.offset + i});
      Copy* row = reinterpret_cast<Copy*>(buffers.values) + (t + i) / per_word * width;
      for (int64_t d = 0; d < source.dim; d += kLanes) copy_words(row + d, words + d, smaller(source.dim - d, kLanes));
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {  // a token's place in its word is another one here and there
    const Place token = {at.block, at.offset + i};
    const T* from = reinterpret_cast<const T*>(source.value(token)) + token.offset % per_word;
    T* to = reinterpret_cast<T*>(buffers.values) + (t + i) / per_word * width * per_word + (t + i) % per_word;
    for (int64_t d = 0; d < source.dim; ++d) to[d * per_word] = from[d * per_word];
  }
}

// Tokens [begin, end) of the chunk, copied into buffers; blocks and heads of any size.
template <typename T>
void copy_chunk(const Source<T>& source, int64_t begin, int64_t end, const Buffers& buffers,
                Chunk<typename Stored<T>::Copy>* chunk) {
  using Copy = typename Stored<T>::Copy;
  constexpr int64_t per_word = Stored<T>::per_word;
  const int64_t width = padded(source.dim), key_words = (source.dim + per_word - 1) / per_word;
  chunk->key_stride = kLanes;
  chunk->value_stride = width;
  for (int64_t g = 0; g < kGroups; ++g) {
    chunk->keys[g] = reinterpret_cast<const Copy*>(buffers.keys) + g * key_words * kLanes;
    chunk->values[g] = reinterpret_cast<const Copy*>(buffers.values) + g * kLanes / per_word * width;
  }
  for (int64_t t = begin / kLanes * kLanes; t < end;) {
    const auto [key, value] = source.find(chunk->first_token + t);
    const int64_t lane = t % kLanes, n = smaller(smaller(kLanes - lane, source.block_size - key.offset), end - t);
    Copy* keys = reinterpret_cast<Copy*>(buffers.keys) + t / kLanes * key_words * kLanes + lane;
    for (int64_t w = 0; w < key_words; ++w) copy_words(keys + w * kLanes, source.key(key) + w * source.block_size, n);
    if (!source.is_latent()) copy_values(source, value, t, n, buffers);
    if constexpr (kHasScales<T>) {
      copy_words(buffers.key_scales + t, source.scale(source.keys, key), n);
      copy_words(buffers.value_scales + t, source.scale(source.values, value), n);
      if (source.is_latent()) copy_words(buffers.tail_scales + t, source.tail_scale(key), n);
    }
    t += n;
  }
}

// Sixteen words at `p`, of which n count, as pairs: of inputs 0 and 1 to `first`, of 2 and 3 to `second`.
void widen_words(uint32_t* first, uint32_t* second, const uint32_t* p, int64_t n) {
  uint32_t whole[kLanes] = {};
  if (n < kLanes) std::memcpy(whole, p, static_cast<size_t>(n) * sizeof *p);
  const Quads quads = load_float8(n < kLanes ? whole : p);
  if (n == kLanes) {
    store_pairs(first, quads.first);
    store_pairs(second, quads.second);
    return;
  }
  uint32_t pairs[2][kLanes];
  store_pairs(pairs[0], quads.first);
  store_pairs(pairs[1], quads.second);
  std::memcpy(first, pairs[0], static_cast<size_t>(n) * sizeof *first);
  std::memcpy(second, pairs[1], static_cast<size_t>(n) * sizeof *second);
}

// Values of tokens [t, t + n) of the chunk, which lie in one block from `at` on, widened.
void widen_values(const Source<f8>& source, Place at, int64_t t, int64_t n, const Buffers& buffers) {
  const int64_t width = padded(source.dim);
  uint32_t* const values = reinterpret_cast<uint32_t*>(buffers.values);
  if (source.block_size % 4 == 0) {
    for (int64_t i = 0; i < n; i += 4) {
      const uint32_t* words = source.value({at.block, at.offset + i});
      uint32_t* row = values + (t + i) / 2 * width;
      for (int64_t d = 0; d < source.dim; d += kLanes)
        widen_words(row + d, row + width + d, words + d, smaller(source.dim - d, kLanes));
    }
    return;
  }
  constexpr int shifts[] = {0, 16, 8, 24};
  for (int64_t i = 0; i < n; ++i) {  // a token's place in its word is another one here and there
    const Place token = {at.block, at.offset + i};
    const uint32_t* words = source.value(token);
    uint16_t* to = reinterpret_cast<uint16_t*>(values + (t + i) / 2 * width) + (t + i) % 2;
    for (int64_t d = 0; d < source.dim; ++d)
      to[2 * d] = static_cast<uint16_t>(bits_of(widen_float8(words[d] >> shifts[token.offset % 4] & 255)) >> 16);
  }
}

// As above, of float8: the copies are words of bfloat16.
void copy_chunk(const Source<f8>& source, int64_t begin, int64_t end, const Buffers& buffers, Chunk<uint32_t>* chunk) {
  const int64_t width = padded(source.dim), words = (source.dim + 3) / 4;
  uint32_t* const keys = reinterpret_cast<uint32_t*>(buffers.keys);
  chunk->key_stride = kLanes;
  chunk->value_stride = width;
  for (int64_t g = 0; g < kGroups; ++g) {
    chunk->keys[g] = keys + g * 2 * words * kLanes;
    chunk->values[g] = reinterpret_cast<const uint32_t*>(buffers.values) + g * kLanes / 2 * width;
  }
  for (int64_t t = begin / kLanes * kLanes; t < end;) {
    const auto [key, value] = source.find(chunk->first_token + t);
    const int64_t lane = t % kLanes, n = smaller(smaller(kLanes - lane, source.block_size - key.offset), end - t);
    uint32_t* to = keys + t / kLanes * 2 * words * kLanes + lane;
    for (int64_t w = 0; w < words; ++w, to += 2 * kLanes)
      widen_words(to, to + kLanes, source.key(key) + w * source.block_size, n);
    widen_values(source, value, t, n, buffers);
    copy_words(buffers.key_scales + t, source.scale(source.keys, key), n);
    copy_words(buffers.value_scales + t, source.scale(source.values, value), n);
    t += n;
  }
}

// Makes the scales of tokens outside [begin, end) zero: nobody sees them, and they may be NaN. Whether the others are finite.
bool clear_unseen(float* scales, int64_t begin, int64_t end) {
  for (int64_t t = begin / kLanes * kLanes; t < begin; ++t) scales[t] = 0.0f;
  for (int64_t t = end; t % kLanes; ++t) scales[t] = 0.0f;
  F32x16 sum = splat(0.0f);
  for (int64_t t = begin / kLanes * kLanes; t < end; t += kLanes) sum = fma(load(scales + t), splat(0.0f), sum);
  return reduce_add(sum) == 0.0f;
}

// What is read after a chunk: tokens [begin, end) of a source, from a multiple of kChunk on.
template <typename T>
struct Next {
  Source<T> source;
  int64_t begin, end;
};

// Scales are few: the next ones are asked for here.
template <typename T>
void ask_for(const Source<T>& source, const Next<T>& next, Chunk<typename Stored<T>::Word>* chunk, int64_t begin,
             int64_t end) {
  chunk->later_step = kLanes * static_cast<int64_t>(sizeof(typename Stored<T>::Word));
  for (int64_t g = begin / kLanes; g * kLanes < end; ++g) {
    const int64_t next_token = next.begin + g * kLanes;
    chunk->later_values[g] = reinterpret_cast<const char*>(chunk->values[g]);
    chunk->later_keys[g] = source.keys.data;
    if (next_token >= next.end) continue;
    const auto [key, value] = next.source.find(next_token);
    chunk->later_keys[g] = next.source.numbers(key);
    if constexpr (kHasScales<T>) {
      fetch(reinterpret_cast<const char*>(source.scale(next.source.keys, key)));
      fetch(reinterpret_cast<const char*>(source.scale(next.source.values, value)));
    }
  }
}

// The following group, of the tokens in [begin, end).
template <typename Word>
void ask_for_following(Chunk<Word>* chunk, int64_t begin, int64_t end) {
  chunk->later_step = kLanes * static_cast<int64_t>(sizeof(Word));
  for (int64_t g = begin / kLanes; g * kLanes < end; ++g) {
    const int64_t last = (end - 1) / kLanes;
    chunk->later_values[g] = reinterpret_cast<const char*>(chunk->keys[smaller(g + kVectors, last)]);
    chunk->later_keys[g] = reinterpret_cast<const char*>(chunk->values[smaller(g + 1, last)]);
  }
}

}  // namespace
}  // namespace QUIRE_LEVEL
}  // namespace quire
