// Which levels exist in this build and run on this processor. QUIRE_HAVE_* come from CMakeLists.txt.
#include "dispatch.h"

#include "cpu_features.h"

namespace quire {

const char* const kLevelNames[kNumLevels] = {"generic", "avx2", "avx512"};

namespace {

constexpr bool compiled(Level level) {
  switch (level) {
    case Level::generic: return true;
#ifdef QUIRE_HAVE_AVX2
    case Level::avx2: return true;
#endif
#ifdef QUIRE_HAVE_AVX512
    case Level::avx512: return true;
#endif
    default: return false;
  }
}

bool runs_here(Level level) {
  const CpuFeatures& f = cpu_features();
  const bool avx2 = f.avx2 && f.fma && f.f16c;
  const bool avx512 = avx2 && f.avx512f && f.avx512bw && f.avx512vl && f.avx512dq;
  switch (level) {
    case Level::generic: return true;
    case Level::avx2: return avx2;
    case Level::avx512: return avx512;
  }
  return false;
}

}  // namespace

bool level_available(Level level) { return compiled(level) && runs_here(level); }

RmsNormFn rms_norm_for(Level level) {
  switch (level) {
#ifdef QUIRE_HAVE_AVX512
    case Level::avx512: return avx512::rms_norm;
#endif
#ifdef QUIRE_HAVE_AVX2
    case Level::avx2: return avx2::rms_norm;
#endif
    default: return generic::rms_norm;
  }
}

}  // namespace quire
