// A row of logits with its edits, in a thread's own memory; quire/ops/sampling/edits.py defines them.
#pragma once

#include "sampling.h"
#include "sampling_rows.h"

namespace quire {
namespace QUIRE_LEVEL {

static inline bool change_something(const RowEdits& edits) {
  return edits.allowed || edits.num_banned || edits.num_biased || edits.num_seen;
}

struct RowFacts {
  float best;      // largest value of the row as it came
  bool has_nan;
};

// Copies the row to `out` without the tokens that `allowed` leaves out; peaks[b] becomes the largest value that is left in block
// b. What lies behind the row's end becomes -inf.
static inline RowFacts copy_allowed(const Row& row, const uint32_t* allowed, float* out, float* peaks) {
  const int64_t num_blocks = num_blocks_of(row.vocab), num_words = (row.vocab + 31) / 32;
  F32x16 best = splat(-kInfinity);
  bool has_nan = false;
  for (int64_t b = 0; b < num_blocks; ++b) {
    F32x16 v[kVectorsPerBlock];
    row.load_block(b, v);
    has_nan |= any_nan(v[0], v[1]) | any_nan(v[2], v[3]);
    best = max(max(max(v[0], v[1]), max(v[2], v[3])), best);
    if (allowed) {
      const uint32_t words[2] = {allowed[2 * b], 2 * b + 1 < num_words ? allowed[2 * b + 1] : 0};
      for (int64_t i = 0; i < kVectorsPerBlock; ++i)
        v[i] = select(words[i / 2] >> (i % 2 * 16) & 0xffff, v[i], splat(-kInfinity));
    }
    for (int64_t i = 0; i < kVectorsPerBlock; ++i) store(out + b * kNoiseBlock + i * kLanes, v[i]);
    peaks[b] = largest(max(max(v[0], v[1]), max(v[2], v[3])));
  }
  return {largest(best), has_nan};
}

static inline void apply_penalties(const RowEdits& edits, float* row) {
  const float repetition = static_cast<float>(edits.repetition_penalty);
  const float frequency = static_cast<float>(edits.frequency_penalty), presence = static_cast<float>(edits.presence_penalty);
  for (int64_t i = 0; i < edits.num_seen; ++i) {
    const float count = edits.seen_counts[i], logit = row[edits.seen_ids[i]];
    const float repeated = repetition == 1.0f ? logit : logit > 0 ? logit / repetition : logit * repetition;
    const float penalty = frequency * count + presence * (count > 0 ? 1.0f : 0.0f);
    row[edits.seen_ids[i]] = repeated - penalty;
  }
}

static inline void find_peaks_again(const int64_t* ids, int64_t count, const float* row, float* peaks) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t block = ids[i] / kNoiseBlock;
    const float* x = row + block * kNoiseBlock;
    peaks[block] = largest(max(max(load(x), load(x + kLanes)), max(load(x + 2 * kLanes), load(x + 3 * kLanes))));
  }
}

// The edits that name tokens, in place; `row` has whole blocks.
static inline void apply_listed(const RowEdits& edits, float* row, float* peaks) {
  for (int64_t i = 0; i < edits.num_banned; ++i) row[edits.banned_ids[i]] = -kInfinity;
  for (int64_t i = 0; i < edits.num_biased; ++i) row[edits.bias_ids[i]] += edits.bias_values[i];
  apply_penalties(edits, row);
  find_peaks_again(edits.banned_ids, edits.num_banned, row, peaks);
  find_peaks_again(edits.bias_ids, edits.num_biased, row, peaks);
  find_peaks_again(edits.seen_ids, edits.num_seen, row, peaks);
}

}  // namespace QUIRE_LEVEL
}  // namespace quire
