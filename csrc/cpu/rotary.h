// rotary: turns queries and keys by their positions and stores keys and values in the paged cache; each part is optional.
#pragma once

#include "batch_layout.h"
#include "kernel.h"
#include "kv_pools.h"

namespace quire {

// Heads are contiguous, tokens `stride` elements apart. Positions and slots come from the layout.
struct RotaryArgs {
  const float* q;              // [rows, H, D], or null: no queries
  const float* k;              // [rows, KH, D]
  const float* v;              // [rows, KH, D]; read only with pools
  const float* k_tail;         // with a latent cache, and there alone: the tails of keys, of which k has the first part
  float* q_out;                // [rows, H, D]; may be q itself
  float* k_out;                // [rows, KH, D], or null; may be k itself
  const float* cos_sin;        // [max_position, rotary_dim]: cos, then sin; or null: nothing turns
  const BatchLayout* layout;
  int64_t rows;
  int64_t q_stride, k_stride, v_stride, k_tail_stride, q_out_stride, k_out_stride;
  int64_t num_heads, rotary_dim;
  KVPools pools;               // keys == null: nothing is stored
};

QUIRE_KERNEL(rotary, RotaryArgs)

}  // namespace quire
