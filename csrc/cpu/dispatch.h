// Instruction-set levels and, per kernel, the function of each level.
#pragma once

#include "rms_norm.h"

namespace quire {

// Ascending: a machine that has a level has those below it.
enum class Level : int { generic = 0, avx2 = 1, avx512 = 2 };
constexpr int kNumLevels = 3;
extern const char* const kLevelNames[kNumLevels];

// True if the level was compiled in and this processor can run it.
bool level_available(Level level);

RmsNormFn rms_norm_for(Level level);

}  // namespace quire
