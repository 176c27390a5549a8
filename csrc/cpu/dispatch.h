// Defines name_for(level) of a kernel. QUIRE_HAVE_<LEVEL> come from CMakeLists.txt.
#pragma once

#include "kernel.h"

#ifdef QUIRE_HAVE_AVX2
#define QUIRE_CASE_AVX2(name) if (level >= Level::avx2) return avx2::name;
#else
#define QUIRE_CASE_AVX2(name)
#endif
#ifdef QUIRE_HAVE_AVX512
#define QUIRE_CASE_AVX512(name) if (level >= Level::avx512) return avx512::name;
#else
#define QUIRE_CASE_AVX512(name)
#endif
#ifdef QUIRE_HAVE_AVX512_VNNI
#define QUIRE_CASE_AVX512_VNNI(name) if (level >= Level::avx512_vnni) return avx512_vnni::name;
#else
#define QUIRE_CASE_AVX512_VNNI(name)
#endif
#ifdef QUIRE_HAVE_AVX512_BF16
#define QUIRE_CASE_AVX512_BF16(name) if (level >= Level::avx512_bf16) return avx512_bf16::name;
#else
#define QUIRE_CASE_AVX512_BF16(name)
#endif
#ifdef QUIRE_HAVE_AVX512_AMX
#define QUIRE_CASE_AVX512_AMX(name) if (level >= Level::avx512_amx) return avx512_amx::name;
#else
#define QUIRE_CASE_AVX512_AMX(name)
#endif
#ifdef QUIRE_HAVE_NEON
#define QUIRE_CASE_NEON(name) if (level >= Level::neon) return neon::name;
#else
#define QUIRE_CASE_NEON(name)
#endif

// For kernels in float32: levels above AVX-512 have nothing to add.
#define QUIRE_DISPATCH(name, Args)         \
  Kernel<Args> name##_for(Level level) {   \
    QUIRE_CASE_NEON(name)                  \
    QUIRE_CASE_AVX512(name)                \
    QUIRE_CASE_AVX2(name)                  \
    (void)level;                           \
    return generic::name;                  \
  }

// For kernels with int8 dot products.
#define QUIRE_DISPATCH_VNNI(name, Args)    \
  Kernel<Args> name##_for(Level level) {   \
    QUIRE_CASE_NEON(name)                  \
    QUIRE_CASE_AVX512_AMX(name)            \
    QUIRE_CASE_AVX512_VNNI(name)           \
    QUIRE_CASE_AVX512(name)                \
    QUIRE_CASE_AVX2(name)                  \
    (void)level;                           \
    return generic::name;                  \
  }

// For kernels with int8 dot products that no tiles serve.
#define QUIRE_DISPATCH_BYTE_DOTS(name, Args) \
  Kernel<Args> name##_for(Level level) {     \
    QUIRE_CASE_NEON(name)                    \
    QUIRE_CASE_AVX512_VNNI(name)             \
    QUIRE_CASE_AVX512(name)                  \
    QUIRE_CASE_AVX2(name)                    \
    (void)level;                             \
    return generic::name;                    \
  }

// For kernels with bfloat16 dot products.
#define QUIRE_DISPATCH_BF16(name, Args)    \
  Kernel<Args> name##_for(Level level) {   \
    QUIRE_CASE_NEON(name)                  \
    QUIRE_CASE_AVX512_AMX(name)            \
    QUIRE_CASE_AVX512_BF16(name)           \
    QUIRE_CASE_AVX512(name)                \
    QUIRE_CASE_AVX2(name)                  \
    (void)level;                           \
    return generic::name;                  \
  }

// For kernels with bfloat16 dot products that no tiles serve.
#define QUIRE_DISPATCH_PAIRS(name, Args)   \
  Kernel<Args> name##_for(Level level) {   \
    QUIRE_CASE_NEON(name)                  \
    QUIRE_CASE_AVX512_BF16(name)           \
    QUIRE_CASE_AVX512(name)                \
    QUIRE_CASE_AVX2(name)                  \
    (void)level;                           \
    return generic::name;                  \
  }

// For kernels with both, that no tiles serve.
#define QUIRE_DISPATCH_DOTS(name, Args)    \
  Kernel<Args> name##_for(Level level) {   \
    QUIRE_CASE_NEON(name)                  \
    QUIRE_CASE_AVX512_BF16(name)           \
    QUIRE_CASE_AVX512_VNNI(name)           \
    QUIRE_CASE_AVX512(name)                \
    QUIRE_CASE_AVX2(name)                  \
    (void)level;                           \
    return generic::name;                  \
  }

// For kernels that differ at every level.
#define QUIRE_DISPATCH_ALL(name, Args)     \
  Kernel<Args> name##_for(Level level) {   \
    QUIRE_CASE_NEON(name)                  \
    QUIRE_CASE_AVX512_AMX(name)            \
    QUIRE_CASE_AVX512_BF16(name)           \
    QUIRE_CASE_AVX512_VNNI(name)           \
    QUIRE_CASE_AVX512(name)                \
    QUIRE_CASE_AVX2(name)                  \
    (void)level;                           \
    return generic::name;                  \
  }
