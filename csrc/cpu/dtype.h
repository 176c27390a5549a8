// Element types of the tensors that kernels see. Storage only: arithmetic is always done in float32.
#pragma once

#include <cstdint>

namespace quire {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };
struct f8 { uint8_t bits; };   // e4m3, without infinities

// The codes that Python passes; exported by bindings.cpp.
enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2 };

}  // namespace quire
