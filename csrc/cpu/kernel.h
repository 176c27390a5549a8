// What a kernel is: a function of its arguments and a team, compiled once per instruction-set level.
//
// A kernel lives in <name>.h (its Args and QUIRE_KERNEL) and <name>.inc (its body in namespace QUIRE_LEVEL); CMake compiles
// the body once per level. Args are plain data: addresses and sizes, checked by the Python caller.
#pragma once

#include "team.h"

namespace quire {

// Ascending: a machine that has a level has those of its architecture below it.
enum class Level : int { generic = 0, avx2 = 1, avx512 = 2, avx512_vnni = 3, avx512_bf16 = 4, avx512_amx = 5, neon = 6 };
constexpr int kNumLevels = 7;
extern const char* const kLevelNames[kNumLevels];

// True if the level was compiled in and this processor can run it.
bool level_available(Level level);

template <typename Args>
using Kernel = void (*)(const Args&, const Team&);

// Declares `name`'s function of each level, and name_for(level): the one of the highest level that has its own code.
#define QUIRE_KERNEL(name, Args)                                  \
  namespace generic { void name(const Args&, const Team&); }      \
  namespace avx2 { void name(const Args&, const Team&); }         \
  namespace avx512 { void name(const Args&, const Team&); }       \
  namespace avx512_vnni { void name(const Args&, const Team&); }  \
  namespace avx512_bf16 { void name(const Args&, const Team&); }  \
  namespace avx512_amx { void name(const Args&, const Team&); }   \
  namespace neon { void name(const Args&, const Team&); }         \
  Kernel<Args> name##_for(Level level);

}  // namespace quire
