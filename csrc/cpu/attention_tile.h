// What a tile of attention is, and what every type of cache does with one: scores to weights, and the merging of chunks.
// For attention.inc alone.
#pragma once

#include "attention.h"
#include "simd.h"

namespace quire {
namespace QUIRE_LEVEL {
namespace {

constexpr int64_t kChunk = 256;
constexpr int64_t kGroups = kChunk / kLanes;
constexpr int64_t kScoreStride = kChunk + kLanes;  // not a power of two: rows would share cache sets

// Rows of a tile, and vectors beside each other, so that the accumulators and one load of each fit the registers.
#if defined(__AVX512F__)
constexpr int kTileRows = 12, kVectors = 2;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kVectors = 1;
#else
constexpr int kTileRows = 4, kVectors = 1;
#endif

constexpr float kNothing = -3e38f;  // the maximum of no scores; finite, so that differences are numbers
const float kLaneIndex[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t padded(int64_t dim) { return (dim + kLanes - 1) / kLanes * kLanes; }

void fetch(const char* p) { __builtin_prefetch(p, 0, 3); }

// Sixteen tokens of a chunk per group, in words of P numbers (kv_pools.h): keys[g][word * key_stride + token] and
// values[g][token / P * value_stride + d].
template <typename Word>
struct Chunk {
  int64_t first_token;
  const Word* keys[kGroups];
  const Word* values[kGroups];
  int64_t key_stride, value_stride;
  const float* key_scales;    // [kChunk], in int8 and float8; a value's scale is 0 where no row of the call sees the token
  const float* value_scales;
  const float* tail_scales;   // of the components from Tile::tail_start on
  bool scales_are_finite;     // the values'
  // What to ask for early: this chunk's values while its keys are read, the next keys while values are. The numbers of a
  // group lie together.
  const char* later_values[kGroups];
  const char* later_keys[kGroups];
  int64_t later_step;         // bytes of 16 words; 0: each pointer is something in the cache, asked for again and again
};

struct Tile {
  float* query;  // as the cache's type wants it, [words of D][kTileRows]
  int rows;
  int64_t tail_start;                // D unless the cache is latent
  int64_t position[kTileRows];
  float* out[kTileRows];
  float slope[kTileRows];
  float score_factor[kTileRows];     // of a product as multiply_keys leaves it
  int32_t query_offset[kTileRows];   // int8 alone, as is the tail's
  int32_t tail_offset[kTileRows];
};

// A row's scores of a chunk, then its weights; of the tokens that it sees.
struct Weights {
  float largest;   // score
  float factor;    // of the scores as they lie in memory; above 0
  float sum;       // of the weights
  float step;      // int8 alone, as is the offset
  int32_t offset;
};

// Between the two products of a tile and a chunk.
struct Rows {
  float* scores;  // [kTileRows][kScoreStride]; then the weights, in float32 and bfloat16
  int8_t* bytes;  // [kTileRows][kBytesStride]: the weights' integers, int8 alone
  Weights weights[kTileRows];
};

constexpr int64_t kBytesStride = 2 * kChunk + 64;

// ---------------------------------------------------------------- merging

// Attention of a tile's rows over some chunks: the largest score, the sum of e^(score - largest), and the values' sum
// with these weights. In memory: float largest[16], sum[16], values[kTileRows][padded(value_dim)].
struct Partial {
  float* data;
  float* largest() const { return data; }
  float* sum() const { return data + kLanes; }
  float* values() const { return data + 2 * kLanes; }
};

int64_t partial_size(int64_t width) { return 2 * kLanes + kTileRows * width; }

void clear(Partial p, int64_t width) {
  store(p.largest(), splat(kNothing));
  for (int64_t i = kLanes; i < partial_size(width); i += kLanes) store(p.data + i, splat(0.0f));
}

// total, then next. A `next` that saw nothing leaves `total` as it is.
void merge(Partial total, Partial next, int rows, int64_t width) {
  const F32x16 before = load(total.largest()), added = load(next.largest());
  const F32x16 largest = max(before, added);
  const F32x16 keep = exp(before - largest), take = exp(added - largest);
  store(total.largest(), largest);
  store(total.sum(), fma(load(total.sum()), keep, load(next.sum()) * take));
  float keeps[kLanes], takes[kLanes];
  store(keeps, keep);
  store(takes, take);
  for (int r = 0; r < rows; ++r) {
    float* into = total.values() + r * width;
    const float* from = next.values() + r * width;
    const F32x16 a = splat(keeps[r]), b = splat(takes[r]);
    for (int64_t d = 0; d < width; d += kLanes) store(into + d, fma(load(into + d), a, load(from + d) * b));
  }
}

void finish(const Tile& tile, Partial total, int64_t dim) {
  const int64_t width = padded(dim);
  for (int r = 0; r < tile.rows; ++r) {
    const F32x16 sum = splat(total.sum()[r]);
    const float* values = total.values() + r * width;
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) store(tile.out[r] + d, load(values + d) / sum);
    if (d < dim) store_first(tile.out[r] + d, load(values + d) / sum, dim - d);
  }
}

// ---------------------------------------------------------------- scores

// Tokens [begin, end) that a position sees.
struct Seen { int64_t begin, end; };

Seen seen_by(const PagedAttentionArgs& args, int64_t position) {
  return {args.window > 0 ? larger(0, position - args.window + 1) : 0, position + 1};
}

// The part in a chunk, counted from its first token; empty: end <= begin.
Seen within_chunk(Seen seen, int64_t first_token) {
  return {larger(seen.begin - first_token, 0), smaller(seen.end - first_token, kChunk)};
}

// What lies between a product and a score: the cap, the distance. One row, groups [groups.begin, groups.end).
void adjust_scores(const PagedAttentionArgs& args, float factor, float slope, int64_t position, int64_t first_token,
                   Range groups, float* scores) {
  const F32x16 cap = splat(args.soft_cap);
  for (int64_t g = groups.begin; g < groups.end; ++g) {
    F32x16 s = load(scores + g * kLanes) * splat(factor);
    if (args.soft_cap != 0.0f) s = cap * tanh(s / cap);
    if (args.alibi_slopes) {
      const F32x16 distance = splat(static_cast<float>(first_token + g * kLanes - position)) + load(kLaneIndex);
      s = fma(splat(slope), distance, s);
    }
    store(scores + g * kLanes, s);
  }
}

// Hides the groups' tokens outside `own` and returns the largest score.
float hide_unseen(float* scores, Seen own, Range groups) {
  const float hidden = -__builtin_inff();
  for (int64_t t = groups.begin * kLanes; t < own.begin; ++t) scores[t] = hidden;
  for (int64_t t = own.end; t < groups.end * kLanes; ++t) scores[t] = hidden;
  F32x16 top = splat(kNothing);
  for (int64_t g = groups.begin; g < groups.end; ++g) top = max(top, load(scores + g * kLanes));
  return reduce_max(top);
}

// ---------------------------------------------------------------- one tile over one chunk

// A Cache is what a type of cache does in its own way:
//   pack_query(tile, r, q, dim, scale)     row r's query, into the tile
//   multiply_keys<R, V>(tile, chunk, g, dim, scores)         scores / factor of R rows and the V groups from g on
//   make_weights<R>(rows, groups, chunk)                     hidden scores are -inf, their weights 0
//   multiply_values<R, V>(rows, chunk, d, begin, end, out)   of tokens [begin, end), 16 V components from d on
// Each is a function of its row and of the tokens that it sees, bit for bit.

template <int R, typename Cache, typename Word>
void attend_rows(const PagedAttentionArgs& args, const Tile& tile, const Chunk<Word>& chunk, Rows& rows, Partial out) {
  const int64_t dim = args.pools.head_dim, width = padded(args.pools.value_dim);
  const Seen all = {within_chunk(seen_by(args, tile.position[0]), chunk.first_token).begin,
                    within_chunk(seen_by(args, tile.position[R - 1]), chunk.first_token).end};
  const Range groups = {all.begin / kLanes, (all.end + kLanes - 1) / kLanes};
  int64_t g = groups.begin;
  for (; g + kVectors <= groups.end; g += kVectors)
    Cache::template multiply_keys<R, kVectors>(tile, chunk, g, dim, rows.scores);
  for (; g < groups.end; ++g) Cache::template multiply_keys<R, 1>(tile, chunk, g, dim, rows.scores);
  for (int r = 0; r < R; ++r) {
    float* scores = rows.scores + r * kScoreStride;
    const bool adjusted = args.alibi_slopes || args.soft_cap != 0.0f;
    const float factor = adjusted ? 1.0f : tile.score_factor[r];
    if (adjusted)
      adjust_scores(args, tile.score_factor[r], tile.slope[r], tile.position[r], chunk.first_token, groups, scores);
    const Seen own = within_chunk(seen_by(args, tile.position[r]), chunk.first_token);
    const int64_t begin = smaller(own.begin, all.end);
    const float top = hide_unseen(scores, {begin, larger(own.end, begin)}, groups);
    rows.weights[r].factor = factor;
    rows.weights[r].largest = own.begin < own.end ? top * factor : kNothing;
  }
  Cache::template make_weights<R>(rows, groups, chunk);
  for (int r = 0; r < R; ++r) {
    out.largest()[r] = rows.weights[r].largest;
    out.sum()[r] = rows.weights[r].sum;
  }
  int64_t d = 0;
  for (; d + kVectors * kLanes <= width; d += kVectors * kLanes)
    Cache::template multiply_values<R, kVectors>(rows, chunk, d, all.begin, all.end, out.values() + d, width);
  for (; d < width; d += kLanes)
    Cache::template multiply_values<R, 1>(rows, chunk, d, all.begin, all.end, out.values() + d, width);
}

template <typename Cache, typename Word>
void attend(const PagedAttentionArgs& args, const Tile& tile, const Chunk<Word>& chunk, Rows& rows, Partial out) {
#define QUIRE_ROWS(R) \
  case R: return attend_rows<(R <= kTileRows ? R : 1), Cache>(args, tile, chunk, rows, out);
  switch (tile.rows) {
    QUIRE_ROWS(1) QUIRE_ROWS(2) QUIRE_ROWS(3) QUIRE_ROWS(4) QUIRE_ROWS(5) QUIRE_ROWS(6)
    QUIRE_ROWS(7) QUIRE_ROWS(8) QUIRE_ROWS(9) QUIRE_ROWS(10) QUIRE_ROWS(11) QUIRE_ROWS(12)
  }
#undef QUIRE_ROWS
}

// The words of a vector, kWords or only `count`, into a column of a query. Unrolled: GCC would make slow scatters of it.
template <int kWords, typename Word, typename Make>
inline void put_words(Word* column, int64_t count, const Make& word) {
  if (count < kWords) {
    for (int64_t i = 0; i < count; ++i) column[i * kTileRows] = word(i);
    return;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kWords; ++i) column[i * kTileRows] = word(i);
}

// Calls step(values, first component's words, w, later) for the words of tokens [begin, end), P to a word, ascending.
template <int64_t P, typename Word, typename Step>
inline void for_each_value_word(const Chunk<Word>& chunk, int64_t d, int64_t begin, int64_t end, const Step& step) {
  constexpr int64_t per_group = kLanes / P;
  const int64_t last = (end + P - 1) / P;
  for (int64_t w = begin / P; w < last;) {
    const int64_t group = w / per_group, stop = smaller(last, (group + 1) * per_group);
    const int64_t first = (w - group * per_group) * chunk.value_stride + d;
    const Word* row = chunk.values[group] + first;
    const char* later = chunk.later_keys[group] + first / kLanes * chunk.later_step;
    for (; w < stop; ++w, row += chunk.value_stride, later += chunk.value_stride / kLanes * chunk.later_step)
      step(row, w, later);
  }
}

}  // namespace
}  // namespace QUIRE_LEVEL
}  // namespace quire
