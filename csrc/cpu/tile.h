// What both linear kernels do around their inner loops: sharing tiles of rows x panels out to threads, and writing a tile.
#pragma once

#include "linear.h"
#include "simd.h"

namespace quire {
namespace QUIRE_LEVEL {

// Rows whose activations one panel meets before the next panel is read; a multiple of every tile height.
constexpr int64_t kRowBlock = 96;

// Calls work(panel, first row, number of rows) for this thread's share: panels in order, each with all its row blocks,
// so that a panel stays in the second-level cache while the rows pass by.
template <typename Work>
static inline void for_each_block(int64_t rows, int64_t panels, const Team& team, const Work& work) {
  const int64_t blocks = divide_up(rows, kRowBlock);
  const Range units = team.share(panels * blocks);
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t first = unit % blocks * kRowBlock;
    work(unit / blocks, first, rows - first < kRowBlock ? rows - first : kRowBlock);
  }
}

// Splits `rows` into tiles of at most kMax rows, as even as possible, and calls work.run<height>(first row) for each.
template <int kMax, int kHeight = kMax>
struct Tiles {
  template <typename Work>
  static inline void dispatch(int64_t height, int64_t first, const Work& work) {
    if (height == kHeight)
      work.template run<kHeight>(first);
    else if constexpr (kHeight > 1)
      Tiles<kMax, kHeight - 1>::dispatch(height, first, work);
  }

  template <typename Work>
  static inline void run(int64_t first, int64_t rows, const Work& work) {
    const int64_t tiles = divide_up(rows, kMax);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t begin = rows * i / tiles, end = rows * (i + 1) / tiles;
      dispatch(end - begin, first + begin, work);
    }
  }
};

static inline void store_some(float* out, F32x16 value, int64_t count) {
  if (count >= kLanes)
    store(out, value);
  else if (count > 0)
    store_first(out, value, count);
}

static inline F32x16 load_some(const float* p, int64_t count) {
  return count >= kLanes ? load(p) : load_first(p, count > 0 ? count : 0);
}

// Writes one row of a tile: 32 outputs of the panel, or 16 of silu(gate) * up.
static inline void finish_row(float* row, const float* bias, const WeightView& weight, int64_t panel, F32x16 a, F32x16 b) {
  if (weight.gate_up) {
    const int64_t half = weight.num_rows / 2, column = panel * kLanes;
    if (bias) {
      a = a + load_some(bias + column, half - column);
      b = b + load_some(bias + half + column, half - column);
    }
    store_some(row + column, silu(a) * b, half - column);
    return;
  }
  const int64_t column = panel * kPanelRows;
  if (bias) {
    a = a + load_some(bias + column, weight.num_rows - column);
    b = b + load_some(bias + column + kLanes, weight.num_rows - column - kLanes);
  }
  store_some(row + column, a, weight.num_rows - column);
  store_some(row + column + kLanes, b, weight.num_rows - column - kLanes);
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
