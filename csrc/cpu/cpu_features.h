// What this processor can do, asked once at run time.
#pragma once

namespace quire {

// x86 features count only if the operating system saves their registers, and AMX only if it lets this process use them: asking
// what there is asks for that permission.
struct CpuFeatures {
  bool avx2 = false, fma = false, f16c = false;
  bool avx512f = false, avx512bw = false, avx512vl = false, avx512dq = false;
  bool avx512_vnni = false, avx512_bf16 = false, avx_vnni = false;
  bool amx_tile = false, amx_int8 = false, amx_bf16 = false;
  bool neon = false, dotprod = false, i8mm = false, bf16 = false, sve = false;
};

const CpuFeatures& cpu_features();

}  // namespace quire
