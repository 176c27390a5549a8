// Which levels exist in this build and run on this processor, and each kernel's function per level.
#include "dispatch.h"

#include "activation.h"
#include "attention.h"
#include "cpu_features.h"
#include "head_linear.h"
#include "layer_norm.h"
#include "moe.h"
#include "pack.h"
#include "pointwise.h"
#include "probe.h"
#include "quantize.h"
#include "rms_norm.h"
#include "rotary.h"
#include "sampling.h"

namespace quire {

const char* const kLevelNames[kNumLevels] = {"generic",     "avx2",       "avx512", "avx512_vnni",
                                             "avx512_bf16", "avx512_amx", "neon"};

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
#ifdef QUIRE_HAVE_AVX512_VNNI
    case Level::avx512_vnni: return true;
#endif
#ifdef QUIRE_HAVE_AVX512_BF16
    case Level::avx512_bf16: return true;
#endif
#ifdef QUIRE_HAVE_AVX512_AMX
    case Level::avx512_amx: return true;
#endif
#ifdef QUIRE_HAVE_NEON
    case Level::neon: return true;
#endif
    default: return false;
  }
}

bool runs_here(Level level) {
  const CpuFeatures& f = cpu_features();
  const bool avx2 = f.avx2 && f.fma && f.f16c;
  const bool avx512 = avx2 && f.avx512f && f.avx512bw && f.avx512vl && f.avx512dq;
  const bool vnni = avx512 && f.avx512_vnni, bf16 = vnni && f.avx512_bf16;
  switch (level) {
    case Level::generic: return true;
    case Level::avx2: return avx2;
    case Level::avx512: return avx512;
    case Level::avx512_vnni: return vnni;
    case Level::avx512_bf16: return bf16;
    case Level::avx512_amx: return bf16 && f.amx_tile && f.amx_int8 && f.amx_bf16;
    case Level::neon: return f.neon;
  }
  return false;
}

}  // namespace

bool level_available(Level level) { return compiled(level) && runs_here(level); }

QUIRE_DISPATCH(argmax, ArgmaxArgs)
QUIRE_DISPATCH(combine, CombineArgs)
QUIRE_DISPATCH(gather, GatherArgs)
QUIRE_DISPATCH(layer_norm, LayerNormArgs)
QUIRE_DISPATCH(linear, LinearArgs)
QUIRE_DISPATCH(pack, PackArgs)
QUIRE_DISPATCH_DOTS(paged_attention, PagedAttentionArgs)
QUIRE_DISPATCH(pointwise, PointwiseArgs)
QUIRE_DISPATCH(quantize, QuantizeArgs)
QUIRE_DISPATCH(rank_tokens, RankArgs)
QUIRE_DISPATCH(rms_norm, RmsNormArgs)
QUIRE_DISPATCH(rotary, RotaryArgs)
QUIRE_DISPATCH(route, RouteArgs)
QUIRE_DISPATCH(row_table_linear, LinearArgs)
QUIRE_DISPATCH(sample, SampleArgs)
QUIRE_DISPATCH(silu_and_mul, SiluAndMulArgs)
QUIRE_DISPATCH(table_linear, LinearArgs)
QUIRE_DISPATCH_BF16(bf16_linear, Bf16LinearArgs)
QUIRE_DISPATCH_PAIRS(float8_linear, Bf16LinearArgs)
QUIRE_DISPATCH_PAIRS(head_linear, HeadLinearArgs)
QUIRE_DISPATCH_BYTE_DOTS(grouped_linear, QuantLinearArgs)
QUIRE_DISPATCH_VNNI(quant_linear, QuantLinearArgs)
QUIRE_DISPATCH_ALL(probe, ProbeArgs)

}  // namespace quire
