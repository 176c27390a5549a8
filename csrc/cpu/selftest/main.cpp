// A program that runs every kernel at every level that the processor has, on 1 to 3 threads, and compares the bits with
// those of plain C++ on one thread. Prints a line per case with a hash of what it wrote, the same on every machine.
// AMX is emulated on a processor that lacks it but has the level below.
//
// It needs no Python, so that it also runs under an emulator: see tests/isa. Build: cmake -DQUIRE_SELFTEST=ON.
#include <cstdio>

#include "amx_emulation.h"
#include "selftest.h"

namespace quire {
namespace {

std::vector<Case> cases() {
  std::vector<Case> all;
  add_basic_cases(all);
  add_linear_cases(all);
  add_moe_cases(all);
  add_attention_cases(all);
  add_sampling_cases(all);
  return all;
}

uint64_t hash_of(const Case& one, Level level, int num_threads) {
  ThreadPool::instance().resize(num_threads);
  Hash hash;
  one.run(level, hash);
  return hash.value();
}

// Prints the case's line; false if some level or thread count gave other bits.
bool check(const Case& one, const std::vector<Level>& levels) {
  const uint64_t expected = hash_of(one, Level::generic, 1);
  std::string wrong;
  for (Level level : levels)
    for (int num_threads = 1; num_threads <= 3; ++num_threads)
      if (hash_of(one, level, num_threads) != expected)
        wrong += std::string(" ") + kLevelNames[static_cast<int>(level)] + "/" + std::to_string(num_threads);
  std::printf("%016llx %s%s%s\n", static_cast<unsigned long long>(expected), one.name.c_str(),
              wrong.empty() ? "" : " DIFFERS AT", wrong.c_str());
  return wrong.empty();
}

#ifdef QUIRE_HAVE_AVX512_AMX
constexpr bool kHasAmxCode = true;
#else
constexpr bool kHasAmxCode = false;
#endif

int run_all() {
  std::vector<Level> levels;
  std::printf("levels:");
  for (int i = 0; i < kNumLevels; ++i) {
    if (!level_available(static_cast<Level>(i))) continue;
    levels.push_back(static_cast<Level>(i));
    std::printf(" %s", kLevelNames[i]);
  }
  const bool lacks_amx = level_available(Level::avx512_bf16) && !level_available(Level::avx512_amx);
  if (kHasAmxCode && lacks_amx && emulate_amx()) {
    levels.push_back(Level::avx512_amx);
    std::printf(" avx512_amx(emulated)");
  }
  std::printf("\n");
  bool ok = true;
  for (const Case& one : cases()) ok = check(one, levels) && ok;
  std::printf(ok ? "ok\n" : "FAILED\n");
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace quire

int main() { return quire::run_all(); }
