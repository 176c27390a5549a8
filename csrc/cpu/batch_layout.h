// What changes from step to step, for the kernels that need it.
#pragma once

#include <cstdint>

namespace quire {

// One batch of T tokens and R requests. Addresses of dense arrays; see quire.ops.paged_attention. A program's
// instructions share one.
struct BatchLayout {
  int64_t num_tokens = 0, num_requests = 0, max_blocks = 0;
  const int64_t* token_ids = nullptr;      // [T]
  const int64_t* positions = nullptr;      // [T]
  const int64_t* slot_mapping = nullptr;   // [T]
  const int32_t* block_tables = nullptr;   // [R, max_blocks]
  const int32_t* query_start = nullptr;    // [R + 1]
  const int32_t* seq_lens = nullptr;       // [R]
};

}  // namespace quire
