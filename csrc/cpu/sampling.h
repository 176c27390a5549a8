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

struct SampleArgs {
  int64_t* token_ids;   // [rows]; -1 where `best` is not finite
  float* best;          // [rows]: largest logit; NaN if the row holds one
  float* processed;     // [rows, vocab], or null
  LogitRows input;
  const double* temperature;
  const double* min_p;
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
