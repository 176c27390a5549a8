// Attention over a cache in bfloat16: both products are dot products of pairs. For attention.inc alone.
//
// A query is rounded to bfloat16 once, weights are too, and their sum is that of the rounded ones. Pairs are multiplied as in
// pairs.h; without vdpbf16ps every operand that is broadcast has been widened before. Chains and sums are otherwise those of
// attention_float.h.
#pragma once

#include "attention_tile.h"
#include "pairs.h"

namespace quire {
namespace QUIRE_LEVEL {
namespace {

#if defined(__AVX512BF16__)

constexpr int kPhases = 1;              // instructions that make up a pair's product
using PairLanes = Pairs;
using PairOperand = uint32_t;

PairOperand make_operand(uint32_t pair) { return pair; }

// Sixteen numbers that are bfloat16 already, as eight operands.
void store_operands(PairOperand* p, F32x16 a) {
  const __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(a.v), 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
}

template <int kPhase>
inline PairLanes load_phase(const uint32_t* p) { return load_pairs(p); }
template <int kPhase>
inline PairLanes broadcast_phase(const PairOperand& a) { return broadcast_pair(a); }

#else

constexpr int kPhases = 2;              // odd numbers, then even ones
using PairLanes = F32x16;
struct PairOperand { float even, odd; };

PairOperand make_operand(uint32_t pair) { return {float_of(pair << 16), float_of(pair & 0xffff0000u)}; }

void store_operands(PairOperand* p, F32x16 a) { store(reinterpret_cast<float*>(p), a); }

template <int kPhase>
inline PairLanes load_phase(const uint32_t* p) { return kPhase == 0 ? high_half(p) : low_half(p); }
template <int kPhase>
inline PairLanes broadcast_phase(const PairOperand& a) { return splat(kPhase == 0 ? a.odd : a.even); }
inline F32x16 dot(F32x16 sum, PairLanes a, PairLanes b) { return fma(a, b, sum); }

#endif

// acc[r][v] += pairs of words[v] times operands[r * stride].
template <int kPhase, int R, int V>
inline void multiply_pairs(F32x16 (&acc)[R][V], const uint32_t* const (&words)[V], const PairOperand* operands,
                           int64_t stride) {
  PairLanes pairs[V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) pairs[v] = load_phase<kPhase>(words[v]);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    const PairLanes operand = broadcast_phase<kPhase>(operands[r * stride]);
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[r][v] = dot(acc[r][v], pairs[v], operand);
  }
  if constexpr (kPhase + 1 < kPhases) multiply_pairs<kPhase + 1>(acc, words, operands, stride);
}

struct Bf16Cache {
  // In memory: PairOperand query[ceil(D / 2)][kTileRows].
  static void pack_query(Tile& tile, int r, const float* q, int64_t dim, float scale) {
    PairOperand* query = reinterpret_cast<PairOperand*>(tile.query);
    for (int64_t d = 0; d < dim; d += kLanes) {
      const F32x16 x = dim - d >= kLanes ? load(q + d) : load_first(q + d, dim - d);
      uint32_t pairs[kLanes / 2];
      store(reinterpret_cast<bf16*>(pairs), x * splat(scale));
      put_words<kLanes / 2>(query + d / 2 * kTileRows + r, (dim - d + 1) / 2, [&](int64_t i) { return make_operand(pairs[i]); });
    }
    tile.score_factor[r] = 1.0f;
  }

  template <int R, int V>
  static void multiply_keys(const Tile& tile, const Chunk<uint32_t>& chunk, int64_t g, int64_t dim, float* scores) {
    const PairOperand* query = reinterpret_cast<const PairOperand*>(tile.query);
    F32x16 acc[R][V];
    const uint32_t* keys[V];
    const char* later[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) keys[v] = chunk.keys[g + v], later[v] = chunk.later_values[g + v];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = splat(0.0f);
    for (int64_t d = 0; d < dim; d += 2, query += kTileRows) {
      multiply_pairs<0>(acc, keys, query, 1);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) keys[v] += chunk.key_stride, fetch(later[v]), later[v] += chunk.later_step;
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(scores + r * kScoreStride + (g + v) * kLanes, acc[r][v]);
  }

  // A row's operands take the place of its scores, from the first on; they need no more room.
  template <int R>
  static void make_weights(Rows& rows, Range groups, const Chunk<uint32_t>&) {
    for (int r = 0; r < R; ++r) {
      float* scores = rows.scores + r * kScoreStride;
      PairOperand* operands = reinterpret_cast<PairOperand*>(scores);
      const F32x16 largest = splat(rows.weights[r].largest);
      F32x16 sum = splat(0.0f);
      for (int64_t g = groups.begin; g < groups.end; ++g) {
        const F32x16 weight = round_to_bf16(exp_of_score(load(scores + g * kLanes) - largest));
        sum = sum + weight;
        store_operands(operands + g * kLanes / 2, weight);
      }
      rows.weights[r].sum = reduce_add(sum);
    }
  }

  template <int R, int V>
  static void multiply_values(const Rows& rows, const Chunk<uint32_t>& chunk, int64_t d, int64_t begin, int64_t end,
                              float* out, int64_t width) {
    const PairOperand* operands = reinterpret_cast<const PairOperand*>(rows.scores);
    constexpr int64_t stride = kScoreStride * static_cast<int64_t>(sizeof(float)) / static_cast<int64_t>(sizeof(PairOperand));
    const Edges<V> edges(chunk, d, begin, end);
    F32x16 acc[R][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = splat(0.0f);
    for_each_value_word<2>(chunk, d, begin, end, [&](const uint32_t* row, int64_t w, const char* later) {
      row = edges.choose(row, w);
      const uint32_t* words[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) words[v] = row + v * kLanes, fetch(later + v * chunk.later_step);
      multiply_pairs<0>(acc, words, operands + w, stride);
    });
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(out + r * width + v * kLanes, acc[r][v]);
  }

 private:
  // The pairs of which only one token is in [begin, end), without the other, which may be a NaN that nobody sees.
  template <int V>
  struct Edges {
    int64_t first = -1, last = -1;
    uint32_t first_words[V * kLanes], last_words[V * kLanes];

    Edges(const Chunk<uint32_t>& chunk, int64_t d, int64_t begin, int64_t end) {
      if (begin % 2) copy(chunk, d, first = begin / 2, 0xffff0000u, first_words);
      if (end % 2) copy(chunk, d, last = end / 2, 0x0000ffffu, last_words);
    }
    static void copy(const Chunk<uint32_t>& chunk, int64_t d, int64_t w, uint32_t mask, uint32_t* out) {
      for_each_value_word<2>(chunk, d, 2 * w, 2 * w + 2, [&](const uint32_t* row, int64_t, const char*) {
        for (int64_t i = 0; i < V * kLanes; ++i) out[i] = row[i] & mask;
      });
    }
    const uint32_t* choose(const uint32_t* row, int64_t w) const {
      return w == first ? first_words : w == last ? last_words : row;
    }
  };
};

}  // namespace
}  // namespace QUIRE_LEVEL
}  // namespace quire
