// Attention over a cache in float32 or float16: float32 arithmetic. For attention.inc alone.
//
// A score is one fma chain over d, the weights' sum goes to lane (token % 16) in ascending order, then reduce_add, and an
// element of the result is one fma chain over the tokens. A token that another row of the tile sees and this one does not has
// weight 0 and changes nothing.
#pragma once

#include "attention_tile.h"

namespace quire {
namespace QUIRE_LEVEL {
namespace {

struct FloatCache {
  static void pack_query(Tile& tile, int r, const float* q, int64_t dim, float scale) {
    for (int64_t d = 0; d < dim; ++d) tile.query[d * kTileRows + r] = q[d] * scale;
    tile.score_factor[r] = 1.0f;
  }

  template <int R, int V, typename Word>
  static void multiply_keys(const Tile& tile, const Chunk<Word>& chunk, int64_t g, int64_t dim, float* scores) {
    F32x16 acc[R][V];
    const Word* keys[V];
    const char* later[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) keys[v] = chunk.keys[g + v], later[v] = chunk.later_values[g + v];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = splat(0.0f);
    for (int64_t d = 0; d < dim; ++d) {
      F32x16 key[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) key[v] = load(keys[v] + d * chunk.key_stride), fetch(later[v] + d * chunk.later_step);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const F32x16 query = splat(tile.query[d * kTileRows + r]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) acc[r][v] = fma(query, key[v], acc[r][v]);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(scores + r * kScoreStride + (g + v) * kLanes, acc[r][v]);
  }

  template <int R, typename Word>
  static void make_weights(Rows& rows, Range groups, const Chunk<Word>&) {
    for (int r = 0; r < R; ++r) {
      float* scores = rows.scores + r * kScoreStride;
      const F32x16 largest = splat(rows.weights[r].largest);
      F32x16 sum = splat(0.0f);
      for (int64_t g = groups.begin; g < groups.end; ++g) {
        const F32x16 weight = exp(load(scores + g * kLanes) - largest);
        sum = sum + weight;
        store(scores + g * kLanes, weight);
      }
      rows.weights[r].sum = reduce_add(sum);
    }
  }

  template <int R, int V, typename Word>
  static void multiply_values(const Rows& rows, const Chunk<Word>& chunk, int64_t d, int64_t begin, int64_t end, float* out,
                              int64_t width) {
    F32x16 acc[R][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = splat(0.0f);
    for_each_value_word<1>(chunk, d, begin, end, [&](const Word* row, int64_t t, const char* later) {
      F32x16 value[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) value[v] = load(row + v * kLanes), fetch(later + v * chunk.later_step);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const F32x16 weight = splat(rows.scores[r * kScoreStride + t]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) acc[r][v] = fma(weight, value[v], acc[r][v]);
      }
    });
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(out + r * width + v * kLanes, acc[r][v]);
  }
};

}  // namespace
}  // namespace QUIRE_LEVEL
}  // namespace quire
