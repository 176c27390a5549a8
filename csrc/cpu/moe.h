// route and combine: the ends of a mixture of experts, a token's choice and the weighted sum of the answers. See grouped.h.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace quire {

// The fields are those of quire.ops.routing.Routing, which says what they mean.
struct RouteArgs {
  int32_t* ids;                  // [rows, top_k]
  float* weights;                // [rows, top_k]
  const float* logits;           // [rows, logits_stride]
  const float* correction_bias;  // [num_experts], or null
  int64_t rows, logits_stride, num_experts, top_k, num_groups, top_groups;
  float scale;
  bool is_softmax;               // else the scores are sigmoids
  bool renormalized;
  bool counts_two;               // a group's score is the sum of its two best choices, not the best one
};
QUIRE_KERNEL(route, RouteArgs)

struct CombineArgs {
  float* out;                    // [rows, out_stride]
  const float* answers;          // [rows * top_k, dim]
  const int32_t* places;         // [rows, top_k]: the rows of `answers` that a token's experts gave
  const float* weights;          // [rows, top_k]
  int64_t rows, out_stride, dim, top_k;
};
QUIRE_KERNEL(combine, CombineArgs)

}  // namespace quire
