// How a matrix [N outputs, K inputs] lies in memory, packed for the kernels.
//
// Rows go in panels of 32, padded with zeros; a panel is one contiguous run that its thread reads front to back.
//   float32   [N/32][K][32]            bfloat16  [N/32][K/2][32][2]    pairs of inputs, as vdpbf16ps wants them
//   int8      [N/32][K/4][32][4]       value + 128, unsigned, as vpdpbusd wants them
//   int4      [N/32][K/8][32][4]       low nibbles are inputs 0 to 3 of the eight, high nibbles 4 to 7
//   uint8     [N/32][K/4][32][4]       value, unsigned
//   uint4     [N/32][K/8][32][4]       as int4
//   uint6     [N/32][K/16][3][32][4]   two words as int4's, then the high bits: byte b has those of inputs b, b + 4, b + 8, b + 12
//   uint5     [N/32][K/32][5][32][4]   four words as int4's, then the high bits: byte b has those of inputs b, b + 4, ... b + 28
//   uint3     [N/32][K/32][3][32][4]   two words as uint2's, then the high bits as uint5's
//   uint2     [N/32][K/16][32][4]      byte b has inputs b, b + 4, b + 8, b + 12, the first in the lowest bits
//   lookup4   [N/32][K/8][32][4]       as int4
//   float8    [N/32][K/4][32][4]       e4m3; inputs 0, 2, 1, 3 of the four, so that low and high bytes of 16 bits are pairs
//   table4    [N/32][K/8][32]          nibble i, from the lowest, is the code of input i of the eight
//   row_table4  a row is a run of its own: [N/32][32][K/128][16] words, of which nibble i of word j is the code of input 16 i + j of the
//             128; of the last inputs, a multiple of 32 below 128, the words are as many bytes as they have codes in pairs
//   float16   [N/32][K][32]            one input of the panel is one line of the cache; K is padded to an even number
// Scales: int8 float32 [N/32][32], int4 float16 [N/32][K/group][32], float8 and table4 float32 [N/32][K/group, rounded up][32];
// tables: row_table4 float32 [N/32][32][16]; zeros, where there are any: uint8, shaped like the scales. uint2 to uint8 and lookup4: see
// GroupNumbers.
// For a gate/up pair a panel holds 16 rows of the gate and then the same 16 rows of up.
#pragma once

#include <cstdint>

namespace quire {

constexpr int64_t kPanelRows = 32;

// The codes that Python passes; exported by bind_linear.cpp.
enum class WeightKind : int {
  float32 = 0, bfloat16 = 1, int8 = 2, int4 = 3, uint8 = 4, uint4 = 5, uint6 = 6, uint5 = 7, float8 = 8, table4 = 9,
  float16 = 10, row_table4 = 11, uint3 = 12, uint2 = 13, lookup4 = 14
};

// uint2 to uint8: weight = (value - zero) * scale + minimum, with a scale and a minimum per output and group; lookup4: the integer
// that the value stands for, times the scale. In one level both are float16; in two a group has small integers and each 256 inputs
// have float16 factors of those.
struct GroupNumbers {
  const void* scales;      // float16 [N/32][K/group][32]; in two levels int8 of that shape, or see has_nibbles
  const void* minima;      // likewise, or null
  const void* scale_factors, *minimum_factors;   // float16 [N/32][K/256][32]; null in one level, the second also without minima

  bool has_minima() const { return minima || minimum_factors; }
  // In two levels without `minima` of their own: bytes of `scales` have the scale in the low four bits, the minimum in the high ones.
  bool has_nibbles() const { return minimum_factors && !minima; }
};

// What is added to some of a matrix's numbers, in compressed rows; the rows are those of the matrix, in its own order.
struct Outliers {
  const int32_t* starts = nullptr;    // [N + 1]; null: there are none
  const int32_t* columns = nullptr;   // ascending within a row
  const float* values = nullptr;
};

struct WeightView {
  const void* data;
  const void* scales;      // int8, int4, float8 and table4
  const uint8_t* zeros;    // int4, and uint2 to uint8 in one level without minima; null: the middle everywhere
  int64_t num_rows;        // N
  int64_t num_inputs;      // K
  int64_t group;           // inputs per scale, where there are groups; float8: 0 for all of a row
  bool gate_up;
  WeightKind kind;
  GroupNumbers groups;     // uint2 to uint8 and lookup4
  // table4 and lookup4: the sixteen numbers that codes stand for, lookup4's integers from -128 to 127; row_table4: those of each row
  const float* table;
  Outliers outliers = {};  // row_table4
};

constexpr int64_t kFactorGroup = 256;

// Bits of a value of uint2 to uint8 and lookup4; 0 of other kinds.
static inline int bits_of(WeightKind kind) {
  switch (kind) {
    case WeightKind::uint8: return 8;
    case WeightKind::uint6: return 6;
    case WeightKind::uint5: return 5;
    case WeightKind::uint4: case WeightKind::lookup4: return 4;
    case WeightKind::uint3: return 3;
    case WeightKind::uint2: return 2;
    default: return 0;
  }
}

static inline bool is_grouped(WeightKind kind) { return bits_of(kind) != 0; }

// What lookup4's integers are raised by, so that they are unsigned.
constexpr int32_t kLookupOffset = 128;

// What all values of a matrix are too large by: its middle, unless its groups have minima or zeros of their own.
static inline int32_t zero_of(const WeightView& weight) {
  if (weight.kind == WeightKind::lookup4) return kLookupOffset;
  return weight.groups.has_minima() || weight.zeros ? 0 : 1 << (bits_of(weight.kind) - 1);
}

// The bits of a grouped value lie in words of low bits and, if that is not all, a word of high bits for several of those: byte b of
// a word has bits of inputs b, b + 4, b + 8 and so on, the first in its lowest bits. A run is what shares a word.
constexpr int low_bits(int bits) { return bits == 8 ? 8 : bits >= 4 ? 4 : 2; }
constexpr int high_bits(int bits) { return bits - low_bits(bits); }
constexpr int run_inputs(int bits) { return 32 / (high_bits(bits) ? high_bits(bits) : low_bits(bits)); }
constexpr int run_words(int bits) { return run_inputs(bits) * bits / 32; }

static inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t num_panels(int64_t num_rows) { return divide_up(num_rows, kPanelRows); }

static inline int64_t group_size(const WeightView& weight) { return weight.group > 0 ? weight.group : weight.num_inputs; }

// Inputs as stored: padded with zeros to whole pairs or quads.
static inline int64_t padded_inputs(WeightKind kind, int64_t num_inputs) {
  switch (kind) {
    case WeightKind::float32: return num_inputs;
    case WeightKind::bfloat16: case WeightKind::float16: return divide_up(num_inputs, 2) * 2;
    case WeightKind::int8: return divide_up(num_inputs, 4) * 4;
    case WeightKind::int4: case WeightKind::table4: return divide_up(num_inputs, 8) * 8;
    case WeightKind::float8: return divide_up(num_inputs, 4) * 4;
    default: return num_inputs;   // whole groups
  }
}

// The smallest run of a row's inputs that fills whole 32-bit words, and their number.
struct Run { int64_t inputs, words; };

static inline Run run_of(WeightKind kind) {
  switch (kind) {
    case WeightKind::float32: return {1, 1};
    case WeightKind::bfloat16: case WeightKind::float16: return {2, 1};
    case WeightKind::int8: case WeightKind::float8: return {4, 1};
    case WeightKind::int4: case WeightKind::table4: return {8, 1};
    case WeightKind::row_table4: return {32, 4};
    default: return {run_inputs(bits_of(kind)), run_words(bits_of(kind))};
  }
}

// 32-bit words of a row as stored.
static inline int64_t words_per_row(WeightKind kind, int64_t num_inputs) {
  const Run run = run_of(kind);
  return padded_inputs(kind, num_inputs) / run.inputs * run.words;
}

}  // namespace quire
