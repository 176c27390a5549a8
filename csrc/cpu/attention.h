// paged_attention: attention of a step's tokens over the paged cache, for prompt chunks and single tokens alike.
#pragma once

#include "batch_layout.h"
#include "kernel.h"
#include "kv_pools.h"

namespace quire {

// Heads are contiguous, tokens `stride` elements apart. Requests, lengths and block tables come from the layout.
struct PagedAttentionArgs {
  float* out;                  // [T, H, value_dim]
  const float* q;              // [T, H, D]; over a latent cache their first value_dim components
  const float* q_tail;         // over a latent cache, and there alone: their tails, [T, H, D - tail_start]
  const float* alibi_slopes;   // [H], or null
  const BatchLayout* layout;
  int64_t rows;                // T; the layout says which request has which
  int64_t out_stride, q_stride, q_tail_stride;
  int64_t num_heads;
  int64_t window;              // positions that a token sees, its own included; 0: all
  float scale;
  float soft_cap;              // 0: none
  bool causal;                 // a token sees none after it; else all of its request
  KVPools pools;
};

QUIRE_KERNEL(paged_attention, PagedAttentionArgs)

}  // namespace quire
