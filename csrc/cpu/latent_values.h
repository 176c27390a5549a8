// The values of a latent cache, which has no pool of them: a chunk's are made of its keys. For attention.inc alone.
//
// Keys have a word's numbers side by side in the components, values in the tokens (kv_pools.h). So sixteen words of sixteen
// tokens are transposed, which gives each token's components in a row, and P rows are interleaved.
#pragma once

#include "attention_source.h"

namespace quire {
namespace QUIRE_LEVEL {
namespace {

// rows[t][w] = words[w * stride + t], for `count` <= 16 words w of sixteen tokens t.
#if defined(__AVX512F__)

void transpose_all(uint32_t* rows, const uint32_t* words, int64_t stride) {
  __m512i a[kLanes], b[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) a[i] = _mm512_loadu_si512(words + i * stride);
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; i += 2) {  // pairs of words
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {  // a[i + j]: words i to i + 3 of tokens j, 4 + j, 8 + j and 12 + j
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88), high = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd), odd_high = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
    _mm512_storeu_si512(rows + j * kLanes, _mm512_shuffle_i32x4(low, high, 0x88));
    _mm512_storeu_si512(rows + (8 + j) * kLanes, _mm512_shuffle_i32x4(low, high, 0xdd));
    _mm512_storeu_si512(rows + (4 + j) * kLanes, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_si512(rows + (12 + j) * kLanes, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}

#else

void transpose_all(uint32_t* rows, const uint32_t* words, int64_t stride) {
  for (int64_t t = 0; t < kLanes; ++t)
    for (int64_t w = 0; w < kLanes; ++w) rows[t * kLanes + w] = words[w * stride + t];
}

#endif

void transpose_words(uint32_t* rows, const uint32_t* words, int64_t stride, int64_t count) {
  if (count == kLanes) return transpose_all(rows, words, stride);
  for (int64_t t = 0; t < kLanes; ++t)
    for (int64_t w = 0; w < count; ++w) rows[t * kLanes + w] = words[w * stride + t];
}

// out[d] = the word of components d of P tokens, whose rows are one below the other.
template <int64_t P>
void interleave(uint32_t* out, const uint32_t* rows, int64_t count) {
  if constexpr (P == 1) {
    std::memcpy(out, rows, static_cast<size_t>(count) * sizeof *out);
  } else if constexpr (P == 2) {
    const uint16_t* even = reinterpret_cast<const uint16_t*>(rows);
    const uint16_t* odd = reinterpret_cast<const uint16_t*>(rows + kLanes);
    for (int64_t d = 0; d < count; ++d) out[d] = even[d] | static_cast<uint32_t>(odd[d]) << 16;
  } else {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(rows);
    constexpr int64_t next = kLanes * sizeof *rows;
    for (int64_t d = 0; d < count; ++d)
      out[d] = bytes[d] | static_cast<uint32_t>(bytes[next + d]) << 8 | static_cast<uint32_t>(bytes[2 * next + d]) << 16 |
               static_cast<uint32_t>(bytes[3 * next + d]) << 24;
  }
}

// Of the groups with tokens [begin, end) of a chunk whose keys are known. Those that nobody sees are as undefined as their keys.
template <typename T>
void make_values(int64_t begin, int64_t end, int64_t dim, int64_t value_dim, const Buffers& buffers,
                 Chunk<typename Stored<T>::Copy>* chunk) {
  using Copy = typename Stored<T>::Copy;
  constexpr int64_t per_word = Stored<T>::per_word;
  const int64_t width = padded(value_dim), num_words = (dim + per_word - 1) / per_word;
  uint32_t rows[kLanes * kLanes];
  chunk->value_stride = width;
  for (int64_t g = begin / kLanes; g * kLanes < end; ++g) {
    uint32_t* values = reinterpret_cast<uint32_t*>(buffers.values) + g * kLanes / per_word * width;
    const uint32_t* keys = reinterpret_cast<const uint32_t*>(chunk->keys[g]);
    for (int64_t d = 0; d < value_dim; d += kLanes * per_word) {
      const int64_t word = d / per_word;
      transpose_words(rows, keys + word * chunk->key_stride, chunk->key_stride, smaller(num_words - word, kLanes));
      for (int64_t t = 0; t < kLanes; t += per_word)
        interleave<per_word>(values + t / per_word * width + d, rows + t * kLanes, smaller(value_dim - d, kLanes * per_word));
    }
    chunk->values[g] = reinterpret_cast<const Copy*>(values);
  }
}

}  // namespace
}  // namespace QUIRE_LEVEL
}  // namespace quire
