// Attention over a cache in int8: both products are exact sums of byte products. For attention.inc alone.
//
// A query, and the weights of a row and chunk, become integers of 16 bits times a step. With VNNI each is 256 * high + low, two
// signed bytes: all high products come first, then their sum times 256 goes on with the low ones; without it numbers of 16 bits
// are multiplied anyway. Either way it is the exact sum modulo 2^32, in range up to D = 512, and beyond it since a longer query's
// integers are smaller. A token's value scale goes into its weight, so that one step serves a chunk. Bytes of the cache are number + 128, which takes 128 * (sum of the integers) off.
// With 8 bits a weight below 1 / 510 of the largest would be lost, and thousands of those may be half the attention; 16 bits lose
// at most 256 / 65,024 = 0.4 % of a chunk's largest weight altogether.
#pragma once

#include "attention_tile.h"
#include "dot.h"

namespace quire {
namespace QUIRE_LEVEL {
namespace {

constexpr float kLargestInteger = 127 * 256;  // so that both of its bytes are signed

// Four integers in one pass over the words that they meet; kPasses of them make up the integers.
#if defined(__AVX512VNNI__)

constexpr int kPasses = 2;
struct Operand { int8_t v[4]; };

inline Broadcast broadcast_operand(const Operand& a) { return broadcast(a.v); }

#else

constexpr int kPasses = 1;
struct Operand { int16_t v[4]; };

inline Broadcast broadcast_operand(const Operand& a) { return broadcast_quad(a.v); }

#endif

// Rounds numbers up to kLargestInteger and returns them; their operands of a pass lie `stride` behind those of the one before.
inline I32x16 store_integers(Operand* p, [[maybe_unused]] int64_t stride, F32x16 a) {
  const I32x16 rounded = round_to_int(a);
#if defined(__AVX512VNNI__)
  store_low_bytes(p->v, shift_right<8>(rounded + splat_int(128)));
  store_low_bytes(p[stride].v, rounded);
#else
  store_quads(p->v, rounded);
#endif
  return rounded;
}

// From numbers to integers up to `top`, of numbers up to `largest`; 0 for numbers that are nothing.
inline float integers_per(float largest, float top = kLargestInteger) { return largest > 1e-30f ? top / largest : 0.0f; }

// A query's: D products with numbers up to 127 must add up to less than 2^31.
inline float largest_of_query(int64_t dim) { return dim > 512 ? kLargestInteger * 512.0f / static_cast<float>(dim) : kLargestInteger; }

// acc[r][v] += dot products of words[v] and operands[r * stride].
template <int R, int V>
inline void multiply_words(I32x16 (&acc)[R][V], const uint32_t* const (&words)[V], const Operand* operands, int64_t stride) {
  Bytes bytes[V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) bytes[v] = load_bytes(reinterpret_cast<const uint8_t*>(words[v]));
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    const Broadcast operand = broadcast_operand(operands[r * stride]);
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[r][v] = dot(acc[r][v], bytes[v], operand);
  }
}

struct Int8Cache {
  // In memory: Operand query[kPasses][ceil(D / 4)][kTileRows].
  static void pack_query(Tile& tile, int r, const float* q, int64_t dim, float scale) {
    const int64_t words = (dim + 3) / 4;
    Operand* query = reinterpret_cast<Operand*>(tile.query);
    F32x16 top = splat(0.0f), sum = splat(0.0f);
    for (int64_t d = 0; d < dim; d += kLanes) {
      const F32x16 x = (dim - d >= kLanes ? load(q + d) : load_first(q + d, dim - d)) * splat(scale);
      top = max(top, abs(x));
      sum = sum + x;
    }
    const float most = largest_of_query(dim), largest = reduce_max(top), factor = integers_per(largest, most);
    const auto pack_part = [&](int64_t begin, int64_t end) {
      I32x16 integers = splat_int(0);
      for (int64_t d = begin; d < end; d += kLanes) {
        const F32x16 x = end - d >= kLanes ? load(q + d) : load_first(q + d, end - d);
        Operand passes[kPasses][kLanes / 4];
        integers = integers + store_integers(passes[0], kLanes / 4, x * splat(scale) * splat(factor));
        for (int pass = 0; pass < kPasses; ++pass)
          put_words<kLanes / 4>(query + (pass * words + d / 4) * kTileRows + r, (end - d + 3) / 4,
                                [&](int64_t i) { return passes[pass][i]; });
      }
      return -kByteZero * reduce_add_int(integers);
    };
    tile.query_offset[r] = pack_part(0, tile.tail_start);
    tile.tail_offset[r] = pack_part(tile.tail_start, dim);
    const float step = factor > 0.0f ? largest / most : 1.0f;
    tile.score_factor[r] = step + 0.0f * reduce_add(sum);  // NaN if any number is
  }

  template <int R, int V>
  static void multiply_keys(const Tile& tile, const Chunk<uint32_t>& chunk, int64_t g, int64_t dim, float* scores) {
    const int64_t words = (dim + 3) / 4, first_words = (tile.tail_start + 3) / 4;
    multiply_part<false, R, V>(tile, chunk, g, {0, first_words}, words, chunk.key_scales, tile.query_offset, scores);
    if (first_words < words)
      multiply_part<true, R, V>(tile, chunk, g, {first_words, words}, words, chunk.tail_scales, tile.tail_offset, scores);
  }

  // A row's loops are short, so each pass goes through all rows: they hide each other's latency.
  template <int R>
  static void make_weights(Rows& rows, Range groups, const Chunk<uint32_t>& chunk) {
    float most[R];
    for (int r = 0; r < R; ++r) {
      float* scores = rows.scores + r * kScoreStride;
      const F32x16 factor = splat(rows.weights[r].factor), least = splat(-rows.weights[r].largest);
      F32x16 sum = splat(0.0f), top = splat(0.0f);
      for (int64_t g = groups.begin; g < groups.end; ++g) {
        const F32x16 weight = exp_of_score(fma(load(scores + g * kLanes), factor, least));
        const F32x16 scaled = weight * load(chunk.value_scales + g * kLanes);
        sum = sum + weight;
        top = max(top, scaled);
        store(scores + g * kLanes, scaled);
      }
      rows.weights[r].sum = reduce_add(sum);
      most[r] = reduce_max(top);
    }
    for (int r = 0; r < R; ++r) {
      const float* scores = rows.scores + r * kScoreStride;
      const F32x16 factor = splat(integers_per(most[r]));
      Operand* operands = reinterpret_cast<Operand*>(rows.bytes + r * kBytesStride);
      I32x16 integers = splat_int(0);
      for (int64_t g = groups.begin; g < groups.end; ++g)
        integers = integers + store_integers(operands + g * kLanes / 4, kChunk / 4, load(scores + g * kLanes) * factor);
      rows.weights[r].step = most[r] / kLargestInteger;
      rows.weights[r].offset = -kByteZero * reduce_add_int(integers);
    }
    if (!chunk.scales_are_finite)
      for (int r = 0; r < R; ++r) rows.weights[r].step += poison(rows.scores + r * kScoreStride, groups);
  }

  template <int R, int V>
  static void multiply_values(const Rows& rows, const Chunk<uint32_t>& chunk, int64_t d, int64_t begin, int64_t end,
                              float* out, int64_t width) {
    I32x16 acc[R][V];
    const Operand* operands = reinterpret_cast<const Operand*>(rows.bytes);
    start(acc);
    multiply_pass<true>(acc, chunk, d, begin, end, operands);
    if constexpr (kPasses == 2) {
      shift(acc);
      multiply_pass<false>(acc, chunk, d, begin, end, operands + kChunk / 4);
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const I32x16 offset = splat_int(rows.weights[r].offset);
      const F32x16 step = splat(rows.weights[r].step);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(out + r * width + v * kLanes, to_float(acc[r][v] + offset) * step);
    }
  }

 private:
  // Words [part.begin, part.end) of the keys of V groups from g on, as scores or added to them.
  template <bool kAdds, int R, int V>
  static inline void multiply_part(const Tile& tile, const Chunk<uint32_t>& chunk, int64_t g, Range part, int64_t words,
                                   const float* key_scales, const int32_t* offsets, float* scores) {
    const Operand* query = reinterpret_cast<const Operand*>(tile.query);
    I32x16 acc[R][V];
    start(acc);
    multiply_pass<!kAdds>(acc, chunk, g, part, query);
    if constexpr (kPasses == 2) {
      shift(acc);
      multiply_pass<false>(acc, chunk, g, part, query + words * kTileRows);
    }
    F32x16 scales[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) scales[v] = load(key_scales + (g + v) * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const I32x16 offset = splat_int(offsets[r]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        float* score = scores + r * kScoreStride + (g + v) * kLanes;
        const F32x16 product = to_float(acc[r][v] + offset);
        store(score, kAdds ? fma(product, scales[v], load(score)) : product * scales[v]);
      }
    }
  }

  template <int R, int V>
  static inline void start(I32x16 (&acc)[R][V]) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = splat_int(0);
  }

  // From the high bytes to the low ones.
  template <int R, int V>
  static inline void shift(I32x16 (&acc)[R][V]) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = shift_left<8>(acc[r][v]);
  }

  // 0, or NaN if any of a row's weights is NaN or infinite.
  static float poison(const float* weights, Range groups) {
    F32x16 sum = splat(0.0f);
    for (int64_t g = groups.begin; g < groups.end; ++g) sum = sum + load(weights + g * kLanes);
    return 0.0f * reduce_add(sum);
  }

  template <bool kFetches, int R, int V>
  static inline void multiply_pass(I32x16 (&acc)[R][V], const Chunk<uint32_t>& chunk, int64_t g, Range part,
                                   const Operand* query) {
    const uint32_t* keys[V];
    const char* later[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) keys[v] = chunk.keys[g + v] + part.begin * chunk.key_stride, later[v] = chunk.later_values[g + v];
    query += part.begin * kTileRows;
    for (int64_t w = part.begin; w < part.end; ++w, query += kTileRows) {
      multiply_words(acc, keys, query, 1);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        keys[v] += chunk.key_stride;
        if constexpr (kFetches) fetch(later[v]), later[v] += chunk.later_step;
      }
    }
  }

  // 16 V components of values from d on.
  template <bool kFetches, int R, int V>
  static inline void multiply_pass(I32x16 (&acc)[R][V], const Chunk<uint32_t>& chunk, int64_t d, int64_t begin, int64_t end,
                                   const Operand* operands) {
    constexpr int64_t stride = kBytesStride / static_cast<int64_t>(sizeof(Operand));
    for_each_value_word<4>(chunk, d, begin, end, [&](const uint32_t* row, int64_t w, [[maybe_unused]] const char* later) {
      const uint32_t* words[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        words[v] = row + v * kLanes;
        if constexpr (kFetches) fetch(later + v * chunk.later_step);
      }
      multiply_words(acc, words, operands + w, stride);
    });
  }
};

}  // namespace
}  // namespace QUIRE_LEVEL
}  // namespace quire
