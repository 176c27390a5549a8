// What all linear kernels do around their inner loops: sharing tiles of rows x panels out to threads, and writing a tile.
#pragma once

#include "activate.h"
#include "linear.h"
#include "simd.h"

namespace quire {
namespace QUIRE_LEVEL {

// Brings the next panel from memory while the tiles of this one are computed: of a few tiles only the first would read
// memory, and memory would rest while the others find the panel in the cache. Each tile fetches its part, a little per chunk.
// One tile alone has the hardware stream ahead of it, and many tiles are bound by arithmetic.
constexpr int64_t kMaxFetchingTiles = 6;

struct Fetch {
  const char* next;    // the next line to fetch
  int64_t num_tiles;   // that share the panel
  int64_t due = 0;     // lines passed, times 1 / num_tiles

  // The tile has come past `num_bytes` of its own panel.
  inline void pass(int64_t num_bytes) {
    for (due += num_bytes / 64; due >= num_tiles; due -= num_tiles, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

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

// Splits `rows` into tiles of at most kMax rows, as even as possible, and calls work.run<height, fetches>(first row, fetch).
// `panel_end` is where the next panel of `panel_bytes` starts.
template <int kMax, int kHeight = kMax>
struct Tiles {
  template <bool kFetches, typename Work>
  static inline void dispatch(int64_t height, int64_t first, Fetch fetch, const Work& work) {
    if (height == kHeight)
      work.template run<kHeight, kFetches>(first, fetch);
    else if constexpr (kHeight > 1)
      Tiles<kMax, kHeight - 1>::template dispatch<kFetches>(height, first, fetch, work);
  }

  template <typename Work>
  static inline void run(int64_t first, int64_t rows, const void* panel_end, int64_t panel_bytes, const Work& work) {
    const int64_t tiles = divide_up(rows, kMax);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t begin = rows * i / tiles, height = rows * (i + 1) / tiles - begin;
      const char* next = static_cast<const char*>(panel_end) + panel_bytes / 64 * i / tiles * 64;
      if (tiles > 1 && tiles <= kMaxFetchingTiles)
        dispatch<true>(height, first + begin, Fetch{next, tiles}, work);
      else
        dispatch<false>(height, first + begin, Fetch{next, tiles}, work);
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

// One row's largest output so far, as one thread knows it.
struct alignas(64) RowBest {
  float poison[kLanes];   // 0, or NaN once an output was NaN or infinite
  float value;
  int32_t id;
};

// This thread's memory: room for its bests, where start_argmax will find it, and then `num_bytes` for the caller.
template <typename Args>
static inline uint8_t* scratch_after_bests(const Args& args, int64_t num_bytes, const Team& team) {
  const int64_t bests = args.argmax.ids ? args.rows * static_cast<int64_t>(sizeof(RowBest)) : 0;
  return static_cast<uint8_t*>(team.scratch(static_cast<size_t>(bests + num_bytes))) + bests;
}

// This thread's bests, none yet; null if the kernel is to write its outputs.
template <typename Args>
static inline RowBest* start_argmax(const Args& args, const Team& team) {
  if (!args.argmax.ids) return nullptr;
  RowBest* best = static_cast<RowBest*>(team.scratch(static_cast<size_t>(args.rows) * sizeof(RowBest)));
  for (int64_t row = 0; row < args.rows; ++row) {
    store(best[row].poison, splat(0));
    best[row].value = -__builtin_inff();
    best[row].id = 0;
  }
  return best;
}

// Takes a panel's 32 outputs into account; panels come in ascending order.
static inline void offer(RowBest& best, int64_t num_rows, int64_t panel, F32x16 a, F32x16 b) {
  float lanes[kPanelRows];
  const int64_t count = num_rows - panel * kPanelRows;
  if (count < kPanelRows) {  // the last panel: padding repeats the first output and cannot win
    store(lanes, a);
    store(lanes + kLanes, b);
    for (int64_t i = count; i < kPanelRows; ++i) lanes[i] = lanes[0];
    a = load(lanes);
    b = load(lanes + kLanes);
  }
  store(best.poison, fma(a, splat(0), fma(b, splat(0), load(best.poison))));
  const float top = reduce_max(max(a, b));
  if (!(top > best.value)) return;
  store(lanes, a);
  store(lanes + kLanes, b);
  int32_t first = 0;
  while (first < kPanelRows - 1 && lanes[first] != top) ++first;
  best.value = top;
  best.id = static_cast<int32_t>(panel * kPanelRows) + first;
}

// Each row's best of all threads' bests. Lower threads have lower panels, so that ties go to the lowest index.
template <typename Args>
static inline void finish_argmax(const Args& args, const Team& team) {
  if (!args.argmax.ids) return;
  team.barrier();
  const Range rows = team.share(args.rows);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    float value = -__builtin_inff();
    F32x16 poison = splat(0);
    args.argmax.ids[row] = 0;
    for (int thread = 0; thread < team.size; ++thread) {
      const RowBest& own = static_cast<const RowBest*>(team.scratch_of(thread))[row];
      poison = poison + load(own.poison);
      if (own.value > value) {
        value = own.value;
        args.argmax.ids[row] = own.id;
      }
    }
    args.argmax.values[row] = value + reduce_add(poison);
  }
}

// Finishes one row of a tile: 32 outputs of the panel, or 16 of f(gate) * up, written or offered to `best`.
template <typename Args>
static inline void finish_row(const Args& args, RowBest* best, int64_t row, int64_t panel, F32x16 a, F32x16 b) {
  const WeightView& weight = args.weight;
  if (best) return offer(best[row], weight.num_rows, panel, a, b);
  float* out = args.out + row * args.out_stride;
  if (weight.gate_up) {
    const int64_t half = weight.num_rows / 2, column = panel * kLanes;
    if (args.bias) {
      a = a + load_some(args.bias + column, half - column);
      b = b + load_some(args.bias + half + column, half - column);
    }
    store_some(out + column, activate(args.activation, a) * b, half - column);
    return;
  }
  const int64_t column = panel * kPanelRows;
  if (args.bias) {
    a = a + load_some(args.bias + column, weight.num_rows - column);
    b = b + load_some(args.bias + column + kLanes, weight.num_rows - column - kLanes);
  }
  if (args.activation != Activation::none) {
    a = activate(args.activation, a);
    b = activate(args.activation, b);
  }
  store_some(out + column, a, weight.num_rows - column);
  store_some(out + column + kLanes, b, weight.num_rows - column - kLanes);
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
