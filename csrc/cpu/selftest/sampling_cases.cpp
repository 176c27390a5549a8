// Cases of the sampler's kernels.
#include "sampling.h"
#include "selftest.h"

namespace quire {
namespace {

constexpr int64_t kRows = 4;

LogitRows make_logits(std::vector<float>& logits, int64_t vocab) {
  Random random(7);
  logits = random.floats(kRows * vocab);
  return {logits.data(), nullptr, vocab};
}

void run_argmax(int64_t vocab, Level level, Hash& hash) {
  std::vector<float> logits, best(kRows);
  const int64_t parts = (vocab + kArgmaxPart - 1) / kArgmaxPart;
  std::vector<int64_t> token_ids(kRows), part_ids(static_cast<size_t>(kRows * parts));
  std::vector<float> part_best(part_ids.size());
  ArgmaxArgs args{};
  args.token_ids = token_ids.data();
  args.best = best.data();
  args.part_ids = part_ids.data();
  args.part_best = part_best.data();
  args.input = make_logits(logits, vocab);
  args.rows = kRows;
  run(argmax_for(level), args);
  hash.add(token_ids);
  hash.add(best);
}

// Edits of one kind for each row, and none for the last.
struct EditedRows {
  std::vector<uint32_t> allowed;
  std::vector<int64_t> ids;
  std::vector<float> numbers;
  std::vector<RowEdits> rows;
};

EditedRows make_edits(int64_t vocab) {
  EditedRows made;
  Random random(8);
  made.allowed.resize(static_cast<size_t>((vocab + 31) / 32));
  for (uint32_t& word : made.allowed) word = static_cast<uint32_t>(random.next());
  for (int64_t id = 1; id < vocab; id += 3) made.ids.push_back(id);
  const int64_t count = static_cast<int64_t>(made.ids.size());
  made.numbers = random.floats(count);
  for (float& x : made.numbers) x = std::floor(x);
  const RowEdits none = {nullptr, nullptr, 0, nullptr, nullptr, 0, nullptr, nullptr, 0, 1.0, 0.0, 0.0};
  made.rows.assign(kRows, none);
  made.rows[0].allowed = made.allowed.data();
  made.rows[1].bias_ids = made.rows[2].seen_ids = made.ids.data();
  made.rows[1].bias_values = made.rows[2].seen_counts = made.numbers.data();
  made.rows[1].num_biased = made.rows[2].num_seen = count;
  made.rows[1].banned_ids = made.ids.data();
  made.rows[1].num_banned = count / 2;
  made.rows[2].repetition_penalty = 1.3;
  made.rows[2].frequency_penalty = 0.1;
  made.rows[2].presence_penalty = 0.7;
  return made;
}

void run_sample(int64_t vocab, bool edited, Level level, Hash& hash) {
  std::vector<float> logits, best(kRows), processed(static_cast<size_t>(kRows * vocab));
  std::vector<int64_t> token_ids(kRows);
  const EditedRows edits = make_edits(vocab);
  const std::vector<double> temperature = {1.0, 0.7, 1.3, edited ? 0.0 : 1.0}, min_p = {0.0, 0.05, 0.0, 0.01};
  const std::vector<double> typical_p = {1.0, edited ? 0.8 : 1.0, edited ? 0.3 : 1.0, 1.0}, top_p = {1.0, 1.0, 0.9, 0.5};
  const std::vector<int64_t> top_k = {0, 0, 0, 40}, seeds = {1, 2, 3, 4}, positions = {5, 6, 7, 8};
  SampleArgs args{};
  args.token_ids = token_ids.data();
  args.best = best.data();
  args.processed = processed.data();
  args.input = make_logits(logits, vocab);
  args.edits = edited ? edits.rows.data() : nullptr;
  args.temperature = temperature.data();
  args.min_p = min_p.data();
  args.typical_p = typical_p.data();
  args.top_k = top_k.data();
  args.top_p = top_p.data();
  args.seeds = seeds.data();
  args.positions = positions.data();
  args.rows = kRows;
  run(sample_for(level), args);
  hash.add(token_ids);
  hash.add(best);
  hash.add(processed);
}

void run_rank(int64_t vocab, Level level, Hash& hash) {
  constexpr int64_t num_top = 5;
  std::vector<float> logits;
  std::vector<int64_t> top_ids(kRows * num_top), ranks(kRows);
  std::vector<double> log_sum_exp(kRows);
  const std::vector<int64_t> token_ids = {0, 1, vocab / 2, vocab - 1};
  RankArgs args{};
  args.top_ids = top_ids.data();
  args.ranks = ranks.data();
  args.log_sum_exp = log_sum_exp.data();
  args.input = make_logits(logits, vocab);
  args.token_ids = token_ids.data();
  args.num_top = num_top;
  args.rows = kRows;
  run(rank_tokens_for(level), args);
  hash.add(top_ids);
  hash.add(ranks);
  hash.add_bytes(log_sum_exp.data(), log_sum_exp.size() * sizeof(double));
}

}  // namespace

void add_sampling_cases(std::vector<Case>& all) {
  for (int64_t vocab : {100, 1003, 20000}) {
    const std::string suffix = std::string(" ").append(std::to_string(vocab));
    all.push_back({"argmax" + suffix, [=](Level level, Hash& hash) { run_argmax(vocab, level, hash); }});
    for (bool edited : {false, true})
      all.push_back({(edited ? "sample with edits" : "sample") + suffix,
                     [=](Level level, Hash& hash) { run_sample(vocab, edited, level, hash); }});
    all.push_back({"rank_tokens" + suffix, [=](Level level, Hash& hash) { run_rank(vocab, level, hash); }});
  }
}

}  // namespace quire
