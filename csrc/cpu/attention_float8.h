// Attention over a cache in float8: that of attention_bf16.h over numbers widened to bfloat16, with scales. For attention.inc alone.
//
// A score is the product with the numbers times the token's key scale. A token's value scale goes into its rounded weight, which
// stays a bfloat16, since scales are powers of two; the sum is that of the weights without it.
#pragma once

#include "attention_bf16.h"

namespace quire {
namespace QUIRE_LEVEL {
namespace {

struct Float8Cache : Bf16Cache {
  template <int R, int V>
  static void multiply_keys(const Tile& tile, const Chunk<uint32_t>& chunk, int64_t g, int64_t dim, float* scores) {
    Bf16Cache::multiply_keys<R, V>(tile, chunk, g, dim, scores);
    for (int v = 0; v < V; ++v) {
      const F32x16 scales = load(chunk.key_scales + (g + v) * kLanes);
      for (int r = 0; r < R; ++r) {
        float* own = scores + r * kScoreStride + (g + v) * kLanes;
        store(own, load(own) * scales);
      }
    }
  }

  // A weight of 0, that of a token which the row does not see, stays 0 whatever the scale.
  template <int R>
  static void make_weights(Rows& rows, Range groups, const Chunk<uint32_t>& chunk) {
    const F32x16 smallest = splat(1e-20f);   // below any weight but 0
    for (int r = 0; r < R; ++r) {
      float* scores = rows.scores + r * kScoreStride;
      PairOperand* operands = reinterpret_cast<PairOperand*>(scores);
      const F32x16 largest = splat(rows.weights[r].largest);
      F32x16 sum = splat(0.0f);
      for (int64_t g = groups.begin; g < groups.end; ++g) {
        const F32x16 weight = round_to_bf16(exp_of_score(load(scores + g * kLanes) - largest));
        sum = sum + weight;
        const F32x16 scaled = weight * load(chunk.value_scales + g * kLanes);
        store_operands(operands + g * kLanes / 2, zero_where_below(scaled, weight, smallest));
      }
      rows.weights[r].sum = reduce_add(sum);
    }
  }
};

}  // namespace
}  // namespace QUIRE_LEVEL
}  // namespace quire
