// How a matrix [N outputs, K inputs] lies in memory, packed for the kernels.
//
// Rows go in panels of 32, padded with zeros; a panel is one contiguous run that its thread reads front to back.
//   float32   [N/32][K][32]            bfloat16  [N/32][K/2][32][2]    pairs of inputs, as vdpbf16ps wants them
//   int8      [N/32][K/4][32][4]       value + 128, unsigned, as vpdpbusd wants them
//   int4      [N/32][K/8][32][4]       low nibbles are inputs 0 to 3 of the eight, high nibbles 4 to 7
//   table4    [N/32][K/8][32]          nibble i, from the lowest, is the code of input i of the eight
//   float8    [N/32][K/4][32][4]       e4m3; inputs 0, 2, 1, 3 of the four, so that low and high bytes of 16 bits are pairs
// Scales: int8 float32 [N/32][32], int4 float16 [N/32][K/group][32], float8 and table4 float32 [N/32][K/group, rounded up][32]; zeros, where there are any: uint8, shaped like the scales.
// For a gate/up pair a panel holds 16 rows of the gate and then the same 16 rows of up.
#pragma once

#include <cstdint>

namespace quire {

constexpr int64_t kPanelRows = 32;

// The codes that Python passes; exported by bind_linear.cpp.
enum class WeightKind : int { float32 = 0, bfloat16 = 1, int8 = 2, int4 = 3, float8 = 4, table4 = 5 };

struct WeightView {
  const void* data;
  const void* scales;      // null for float32 and bfloat16
  const uint8_t* zeros;    // null: 8 everywhere (int4)
  int64_t num_rows;        // N
  int64_t num_inputs;      // K
  int64_t group;           // int4, table4 and float8: inputs per scale; float8: 0 for all of a row
  bool gate_up;
  WeightKind kind;
  const float* table;      // table4: the sixteen numbers that codes stand for
};

static inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t num_panels(int64_t num_rows) { return divide_up(num_rows, kPanelRows); }

static inline int64_t group_size(const WeightView& weight) { return weight.group > 0 ? weight.group : weight.num_inputs; }

// Inputs as stored: padded with zeros to whole pairs or quads.
static inline int64_t padded_inputs(WeightKind kind, int64_t num_inputs) {
  switch (kind) {
    case WeightKind::float32: return num_inputs;
    case WeightKind::bfloat16: return divide_up(num_inputs, 2) * 2;
    case WeightKind::int8: return divide_up(num_inputs, 4) * 4;
    case WeightKind::int4: case WeightKind::table4: return divide_up(num_inputs, 8) * 8;
    case WeightKind::float8: return divide_up(num_inputs, 4) * 4;
  }
  return num_inputs;
}

}  // namespace quire
