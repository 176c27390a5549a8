// The sampler's work on whole rows of logits: argmax, a draw after filters, log-probabilities. See quire.ops.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace quire {

// Row r of a kernel reads row row_ids[r] of `logits` [., vocab]; row r itself where row_ids is null.
struct LogitRows {
  const float* logits;
  const int64_t* row_ids;
  int64_t vocab;
};

struct ArgmaxArgs {
  int64_t* token_ids;  // [rows]
  float* best;         // [rows]
  int64_t* part_ids;   // [rows, parts]: scratch
  float* part_best;    // [rows, parts]: scratch
  LogitRows input;
  int64_t rows;
};

// Tokens of a row that one thread looks at in a piece.
constexpr int64_t kArgmaxPart = 16384;

// What quire.ops.sampling.edits.RowEdits says of one row; the caller checks that ids are within the vocabulary. Python writes
// it as 12 words of 8 bytes.
struct RowEdits {
  const uint32_t* allowed;  // [ceil(vocab / 32)]: bit i % 32 of word i / 32 is set where token i may stay; null: all
  const int64_t* banned_ids;
  int64_t num_banned;
  const int64_t* bias_ids;
  const float* bias_values;
  int64_t num_biased;
  const int64_t* seen_ids;
  const float* seen_counts;
  int64_t num_seen;
  double repetition_penalty, frequency_penalty, presence_penalty;
};
static_assert(sizeof(RowEdits) == 12 * 8);

struct SampleArgs {
  int64_t* token_ids;   // [rows]; -1 where the largest logit is not finite, before the edits or after
  float* best;          // [rows]: largest logit before the edits; NaN if the row holds one
  float* processed;     // [rows, vocab], or null
  LogitRows input;
  const RowEdits* edits;      // [rows], or null
  const double* temperature;  // 0: the largest
  const double* min_p;
  const double* typical_p;
  const int64_t* top_k;
  const double* top_p;
  const int64_t* seeds;
  const int64_t* positions;
  int64_t rows;
};

struct RankArgs {
  int64_t* top_ids;     // [rows, num_top]; -1 where no token is left
  int64_t* ranks;       // [rows]
  double* log_sum_exp;  // [rows]
  LogitRows input;
  const int64_t* token_ids;  // [rows]
  int64_t num_top;
  int64_t rows;
};

QUIRE_KERNEL(argmax, ArgmaxArgs)
QUIRE_KERNEL(sample, SampleArgs)
QUIRE_KERNEL(rank_tokens, RankArgs)

}  // namespace quire
