// Reads cpuid and xgetbv on x86-64 and asks Linux for AMX; reads the kernel's hwcap bits on aarch64 Linux.
#include "cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace quire {
namespace {

#if defined(__x86_64__)

struct Registers { unsigned eax = 0, ebx = 0, ecx = 0, edx = 0; };

// A leaf that the processor lacks reads as zeros.
Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

constexpr bool bit(unsigned word, int index) { return (word >> index) & 1u; }

// Register state that the operating system saves (XCR0); zero if it cannot be asked.
uint64_t saved_state(const Registers& leaf1) {
  if (!bit(leaf1.ecx, 27)) return 0;  // OSXSAVE
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux gives a process the tile registers only when asked (Linux, Documentation/arch/x86/xstate.rst): one thread asks for
// all, and children inherit the permission. False also if a thread has a signal stack too small for the registers.
bool permit_tiles() {
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#else
  return false;
#endif
}

// Bit positions: Intel Software Developer's Manual, volume 2A, CPUID.
CpuFeatures detect() {
  CpuFeatures f;
  const Registers leaf1 = cpuid(1, 0), leaf7 = cpuid(7, 0), leaf7_1 = cpuid(7, 1);
  const uint64_t saved = saved_state(leaf1);
  const bool ymm = (saved & 0x6) == 0x6;
  const bool zmm = (saved & 0xe6) == 0xe6;
  const bool tiles = (saved & 0x60000) == 0x60000 && bit(leaf7.edx, 24) && permit_tiles();
  f.fma = ymm && bit(leaf1.ecx, 12);
  f.f16c = ymm && bit(leaf1.ecx, 29);
  f.avx2 = ymm && bit(leaf7.ebx, 5);
  f.avx_vnni = ymm && bit(leaf7_1.eax, 4);
  f.avx512f = zmm && bit(leaf7.ebx, 16);
  f.avx512dq = zmm && bit(leaf7.ebx, 17);
  f.avx512bw = zmm && bit(leaf7.ebx, 30);
  f.avx512vl = zmm && bit(leaf7.ebx, 31);
  f.avx512_vnni = zmm && bit(leaf7.ecx, 11);
  f.avx512_bf16 = zmm && bit(leaf7_1.eax, 5);
  f.amx_tile = tiles;
  f.amx_bf16 = tiles && bit(leaf7.edx, 22);
  f.amx_int8 = tiles && bit(leaf7.edx, 25);
  return f;
}

#elif defined(__aarch64__)

CpuFeatures detect() {
  CpuFeatures f;
  f.neon = true;  // part of the base architecture
#if defined(__linux__)
  const unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(AT_HWCAP2);
  f.dotprod = hwcap & (1ul << 20);
  f.sve = hwcap & (1ul << 22);
  f.i8mm = hwcap2 & (1ul << 13);
  f.bf16 = hwcap2 & (1ul << 14);
#endif
  return f;
}

#else

CpuFeatures detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace quire
