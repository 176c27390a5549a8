// Python's side of the sampler's kernels.
#include <string>

#include "bind.h"
#include "sampling.h"

namespace quire {
namespace {

LogitRows logit_rows(uintptr_t logits, uintptr_t row_ids, int64_t vocab) {
  return {pointer<const float>(logits), pointer<const int64_t>(row_ids), vocab};
}

InstructionPtr argmax(uintptr_t token_ids, uintptr_t best, uintptr_t part_ids, uintptr_t part_best, uintptr_t logits,
                      uintptr_t row_ids, int64_t rows, int64_t vocab, int level) {
  ArgmaxArgs args;
  args.token_ids = pointer<int64_t>(token_ids);
  args.best = pointer<float>(best);
  args.part_ids = pointer<int64_t>(part_ids);
  args.part_best = pointer<float>(part_best);
  args.input = logit_rows(logits, row_ids, vocab);
  args.rows = rows;
  return make_instruction(argmax_for(checked_level(level)), args);
}

void check_ids(const int64_t* ids, int64_t count, int64_t vocab) {
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= vocab)
      throw nb::value_error(("token ids of edits must be in [0, " + std::to_string(vocab) + "), got " +
                             std::to_string(ids[i])).c_str());
}

// The RowEdits that `packed` holds, one for each row; null if it is empty.
const RowEdits* checked_edits(const nb::bytes& packed, int64_t rows, int64_t vocab) {
  if (packed.size() == 0) return nullptr;
  if (packed.size() != static_cast<size_t>(rows) * sizeof(RowEdits)) throw nb::value_error("edits must be one for each row");
  const RowEdits* edits = static_cast<const RowEdits*>(packed.data());
  for (int64_t r = 0; r < rows; ++r) {
    check_ids(edits[r].banned_ids, edits[r].num_banned, vocab);
    check_ids(edits[r].bias_ids, edits[r].num_biased, vocab);
    check_ids(edits[r].seen_ids, edits[r].num_seen, vocab);
  }
  return edits;
}

// `edits` must live until the instruction has run.
InstructionPtr sample(uintptr_t token_ids, uintptr_t best, uintptr_t processed, uintptr_t logits, uintptr_t row_ids,
                      uintptr_t temperature, uintptr_t min_p, uintptr_t typical_p, uintptr_t top_k, uintptr_t top_p,
                      uintptr_t seeds, uintptr_t positions, const nb::bytes& edits, int64_t rows, int64_t vocab,
                      int level) {
  SampleArgs args;
  args.token_ids = pointer<int64_t>(token_ids);
  args.best = pointer<float>(best);
  args.processed = pointer<float>(processed);
  args.input = logit_rows(logits, row_ids, vocab);
  args.edits = checked_edits(edits, rows, vocab);
  args.temperature = pointer<const double>(temperature);
  args.min_p = pointer<const double>(min_p);
  args.typical_p = pointer<const double>(typical_p);
  args.top_k = pointer<const int64_t>(top_k);
  args.top_p = pointer<const double>(top_p);
  args.seeds = pointer<const int64_t>(seeds);
  args.positions = pointer<const int64_t>(positions);
  args.rows = rows;
  return make_instruction(sample_for(checked_level(level)), args);
}

InstructionPtr rank_tokens(uintptr_t top_ids, uintptr_t ranks, uintptr_t log_sum_exp, uintptr_t logits,
                           uintptr_t row_ids, uintptr_t token_ids, int64_t rows, int64_t vocab, int64_t num_top,
                           int level) {
  RankArgs args;
  args.top_ids = pointer<int64_t>(top_ids);
  args.ranks = pointer<int64_t>(ranks);
  args.log_sum_exp = pointer<double>(log_sum_exp);
  args.input = logit_rows(logits, row_ids, vocab);
  args.token_ids = pointer<const int64_t>(token_ids);
  args.num_top = num_top;
  args.rows = rows;
  return make_instruction(rank_tokens_for(checked_level(level)), args);
}

}  // namespace

void bind_sampling(nb::module_& m) {
  m.attr("ARGMAX_PART") = kArgmaxPart;
  m.def("argmax", &argmax, "token_ids"_a, "best"_a, "part_ids"_a, "part_best"_a, "logits"_a, "row_ids"_a, "rows"_a,
        "vocab"_a, "level"_a);
  m.def("sample", &sample, "token_ids"_a, "best"_a, "processed"_a, "logits"_a, "row_ids"_a, "temperature"_a, "min_p"_a,
        "typical_p"_a, "top_k"_a, "top_p"_a, "seeds"_a, "positions"_a, "edits"_a, "rows"_a, "vocab"_a, "level"_a);
  m.def("rank_tokens", &rank_tokens, "top_ids"_a, "ranks"_a, "log_sum_exp"_a, "logits"_a, "row_ids"_a, "token_ids"_a,
        "rows"_a, "vocab"_a, "num_top"_a, "level"_a);
}

}  // namespace quire
