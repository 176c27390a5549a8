// pack: a matrix as a checkpoint has it into the panels of weight_format.h, rounding on the way where the format asks for it;
// gather: rows of a packed matrix as float32.
#pragma once

#include "dtype.h"
#include "instruction.h"
#include "weight_format.h"

namespace quire {

struct PackArgs {
  // Some rows of the matrix: either `floats` [num_given, row_stride] of `dtype`, or `values` [num_given, K] (int8, float8, or uint8
  // within the bits of the kind) whose scales are packed by the caller. What the panels hold of other rows stays.
  const void* floats;
  const uint8_t* values;
  DType dtype;
  int64_t first_row, num_given, row_stride;
  void* data;
  void* scales;              // int8: float32 [panels, 32]; int4: float16, float8: float32 [panels, groups, 32]; written with `floats` only
  int64_t rows;              // N
  int64_t num_inputs, group; // as in WeightView
  bool gate_up;
  WeightKind kind;
};
QUIRE_KERNEL(pack, PackArgs)

struct GatherArgs {
  float* out;                // [rows, out_stride]
  int64_t rows, out_stride;
  const BatchLayout* layout; // its token_ids name the rows of the matrix
  bool by_position;          // or its positions
  WeightView weight;
};
QUIRE_KERNEL(gather, GatherArgs)

// A matrix row's place: its panel and its lane in it.
struct Place { int64_t panel, lane; };

static inline Place place_of(int64_t row, int64_t num_rows, bool gate_up) {
  if (!gate_up) return {row / kPanelRows, row % kPanelRows};
  constexpr int64_t half = kPanelRows / 2;
  return row < num_rows / 2 ? Place{row / half, row % half}
                            : Place{(row - num_rows / 2) / half, half + (row - num_rows / 2) % half};
}

// The panels that rows [first, first + count) of a matrix have a part in; count > 0.
static inline Range panels_of(int64_t first, int64_t count, int64_t num_rows, bool gate_up) {
  const int64_t last = first + count - 1;
  const bool in_both_halves = gate_up && first < num_rows / 2 && last >= num_rows / 2;
  if (in_both_halves) return {0, num_panels(num_rows)};
  return {place_of(first, num_rows, gate_up).panel, place_of(last, num_rows, gate_up).panel + 1};
}

// The matrix row at a place, or -1 where the panel is padding.
static inline int64_t row_at(int64_t panel, int64_t lane, int64_t num_rows, bool gate_up) {
  constexpr int64_t half = kPanelRows / 2;
  if (!gate_up) {
    const int64_t row = panel * kPanelRows + lane;
    return row < num_rows ? row : -1;
  }
  const int64_t row = panel * half + lane % half;
  if (row >= num_rows / 2) return -1;
  return lane < half ? row : num_rows / 2 + row;
}

}  // namespace quire
