// How one layer's paged KV cache lies in memory.
#pragma once

#include <cstdint>

namespace quire {

// The codes that Python passes; exported by bind_attention.cpp.
enum class KVDType : int { float32 = 0, bfloat16 = 1, float16 = 2, int8 = 3 };

// For each block and KV head, `head_bytes` in either pool: keys [D][B], tokens innermost, and values [B][D]. In int8 each
// of them is followed by B float32 scales, one per token: element = number * scale.
struct KVPools {
  void* keys;
  void* values;
  int64_t block_size, num_kv_heads, head_dim;
  int64_t head_bytes;
  KVDType dtype;
};

}  // namespace quire
