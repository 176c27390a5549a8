// AMX in software: the signal of an illegal instruction decodes it and does what Intel's Software Developer's Manual (volume 2)
// says. Where the processor would fault, the process ends and says why.
#include "amx_emulation.h"

#if defined(__x86_64__) && defined(__linux__)

#include <signal.h>
#include <ucontext.h>
#include <xmmintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace quire {
namespace {

constexpr int kNumTiles = 8, kMaxRows = 16, kMaxRowBytes = 64, kMaxWords = kMaxRowBytes / 4;

struct Tile {
  uint8_t bytes[kMaxRows][kMaxRowBytes];   // zero beyond rows and row_bytes
  int rows, row_bytes;
};
thread_local Tile tiles[kNumTiles];

void fault_unless(bool condition, const char* rule) {
  if (condition) return;
  std::fprintf(stderr, "AMX emulation: %s\n", rule);
  std::abort();
}

void release() { std::memset(tiles, 0, sizeof tiles); }

void configure(const uint8_t* config) {
  release();
  fault_unless(config[0] == 1 && config[1] == 0, "the palette must be 1 and the start row 0");
  for (int i = 2; i < 16; ++i) fault_unless(config[i] == 0, "a reserved byte is set");
  for (int i = 0; i < 16; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, config + 16 + 2 * i, sizeof row_bytes);
    const int rows = config[48 + i];
    fault_unless(rows <= kMaxRows && row_bytes <= kMaxRowBytes, "a tile has at most 16 rows of 64 bytes");
    fault_unless((rows == 0) == (row_bytes == 0), "a tile has rows without bytes, or bytes without rows");
    fault_unless(i < kNumTiles || rows == 0, "there are eight tiles");
    if (i >= kNumTiles) continue;
    tiles[i].rows = rows;
    tiles[i].row_bytes = row_bytes;
  }
}

Tile& configured(int index) {
  fault_unless(index < kNumTiles && tiles[index].rows > 0 && tiles[index].row_bytes % 4 == 0,
               "the tile is not configured for 32-bit words");
  return tiles[index];
}

void zero(int index) { std::memset(configured(index).bytes, 0, sizeof tiles[index].bytes); }

void load(int index, const uint8_t* memory, int64_t stride) {
  zero(index);
  Tile& tile = tiles[index];
  for (int m = 0; m < tile.rows; ++m) std::memcpy(tile.bytes[m], memory + m * stride, static_cast<size_t>(tile.row_bytes));
}

void store(int index, uint8_t* memory, int64_t stride) {
  const Tile& tile = configured(index);
  for (int m = 0; m < tile.rows; ++m) std::memcpy(memory + m * stride, tile.bytes[m], static_cast<size_t>(tile.row_bytes));
}

struct Product { Tile& c; const Tile& a; const Tile& b; };

Product product_of(int c, int a, int b) {
  const Product p{configured(c), configured(a), configured(b)};
  fault_unless(c != a && a != b && b != c, "a product needs three tiles");
  fault_unless(p.c.rows == p.a.rows && p.c.row_bytes == p.b.row_bytes && p.a.row_bytes / 4 == p.b.rows,
               "the shapes of a product must be [m, n] += [m, k] * [k, n]");
  return p;
}

int32_t widened(uint8_t byte, bool is_signed) { return is_signed ? static_cast<int8_t>(byte) : byte; }

// tdpbssd, tdpbsud, tdpbusd, tdpbuud: sums wrap around.
void multiply_bytes(const Product& p, bool a_signed, bool b_signed) {
  for (int m = 0; m < p.c.rows; ++m) {
    uint32_t sums[kMaxWords];
    std::memcpy(sums, p.c.bytes[m], sizeof sums);
    for (int k = 0; k < p.b.rows; ++k)
      for (int n = 0; n < p.c.row_bytes / 4; ++n)
        for (int i = 0; i < 4; ++i)
          sums[n] += static_cast<uint32_t>(widened(p.a.bytes[m][4 * k + i], a_signed) *
                                           widened(p.b.bytes[k][4 * n + i], b_signed));
    std::memcpy(p.c.bytes[m], sums, sizeof sums);
  }
}

float bf16_at(const uint8_t* p) {
  const uint32_t bits = static_cast<uint32_t>(p[0] | p[1] << 8) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// tdpbf16ps: denormals are zeros, as operands and as results. The processor sees to that in this thread while it runs.
void multiply_bf16(const Product& p) {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(0x9fc0);
  asm volatile("" ::: "memory");
  for (int m = 0; m < p.c.rows; ++m) {
    float chains[2][kMaxWords] = {}, sums[kMaxWords];
    for (int k = 0; k < p.b.rows; ++k)
      for (int n = 0; n < p.c.row_bytes / 4; ++n)
        for (int i = 0; i < 2; ++i)
          chains[i][n] = std::fma(bf16_at(p.a.bytes[m] + 4 * k + 2 * i), bf16_at(p.b.bytes[k] + 4 * n + 2 * i), chains[i][n]);
    std::memcpy(sums, p.c.bytes[m], sizeof sums);
    for (int n = 0; n < p.c.row_bytes / 4; ++n) sums[n] += chains[0][n] + chains[1][n];
    std::memcpy(p.c.bytes[m], sums, sizeof sums);
  }
  asm volatile("" ::: "memory");
  _mm_setcsr(before);
}

// ---------------------------------------------------------------- decoding

// One instruction in the three-byte VEX coding, map 0F38, as all of AMX is. Bits of registers are stored inverted.
class Decoder {
 public:
  explicit Decoder(ucontext_t* context)
      : registers_(context->uc_mcontext.gregs), code_(reinterpret_cast<const uint8_t*>(registers_[REG_RIP])) {}

  // False if the instruction is none of AMX: then nothing happened.
  bool run() {
    if (code_[0] != 0xc4 || (code_[1] & 31) != 2 || (code_[2] & 0x84) != 0) return false;
    const int opcode = code_[3], prefix = code_[2] & 3, modrm = code_[4], middle = modrm >> 3 & 7;
    const bool in_registers = modrm >> 6 == 3;
    const int rm = modrm & 7, third = ~code_[2] >> 3 & 15;
    length_ = 5;
    const Operand memory = in_registers ? Operand{} : operand();
    if (opcode == 0x49 && prefix == kNone && !in_registers && middle == 0) configure(memory.start + memory.offset);
    else if (opcode == 0x49 && prefix == kNone && modrm == 0xc0) release();
    else if (opcode == 0x49 && prefix == kF2 && in_registers && rm == 0) zero(middle);
    else if (opcode == 0x4b && prefix == kF2 && !in_registers && rm == 4) load(middle, memory.start, memory.offset);
    else if (opcode == 0x4b && prefix == kF3 && !in_registers && rm == 4) store(middle, memory.start, memory.offset);
    else if (opcode == 0x5e && in_registers) multiply_bytes(product_of(middle, rm, third), prefix >= kF3, prefix % 2 == 1);
    else if (opcode == 0x5c && prefix == kF3 && in_registers) multiply_bf16(product_of(middle, rm, third));
    else return false;
    registers_[REG_RIP] += length_;
    return true;
  }

 private:
  enum Prefix { kNone = 0, kF3 = 2, kF2 = 3 };

  // An operand in memory: base and displacement, and the scaled index, which is the stride of a tile's rows.
  struct Operand { uint8_t* start = nullptr; int64_t offset = 0; };

  int64_t general(int number) const {
    constexpr int in_order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return registers_[in_order[number]];
  }

  int64_t displacement(int mod, bool no_base) {
    if (mod == 1) return static_cast<int8_t>(code_[length_++]);
    if (mod == 0 && !no_base) return 0;
    int32_t value;
    std::memcpy(&value, code_ + length_, sizeof value);
    length_ += 4;
    return value;
  }

  Operand operand() {
    const int mod = code_[4] >> 6, rm = code_[4] & 7;
    const int base_bit = (~code_[1] & 0x20) >> 2, index_bit = (~code_[1] & 0x40) >> 3;
    if (rm != 4) {
      const bool relative = mod == 0 && rm == 5;
      const int64_t base = displacement(mod, relative);
      return at(base + (relative ? registers_[REG_RIP] + length_ : general(rm | base_bit)), 0);
    }
    const int sib = code_[length_++], index = (sib >> 3 & 7) | index_bit;
    const bool no_base = mod == 0 && (sib & 7) == 5;
    const int64_t base = displacement(mod, no_base);
    return at(base + (no_base ? 0 : general((sib & 7) | base_bit)), index == 4 ? 0 : general(index) * (1 << (sib >> 6)));
  }
  static Operand at(int64_t start, int64_t offset) { return {reinterpret_cast<uint8_t*>(start), offset}; }

  greg_t* registers_;
  const uint8_t* code_;
  int length_ = 0;
};

void on_illegal_instruction(int, siginfo_t*, void* context) {
  if (!Decoder(static_cast<ucontext_t*>(context)).run()) signal(SIGILL, SIG_DFL);  // and the instruction comes again
}

}  // namespace

bool emulate_amx() {
  struct sigaction action {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGILL, &action, nullptr) == 0;
}

}  // namespace quire

#else

namespace quire {
bool emulate_amx() { return false; }
}  // namespace quire

#endif
