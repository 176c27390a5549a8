// Cases of rotary embedding with its cache write, and of paged attention over what that wrote, latent caches among them.
#include "attention.h"
#include "rotary.h"
#include "selftest.h"

namespace quire {
namespace {

constexpr int64_t kBlockSize = 16;

// Two requests: the last tokens of a prompt, and one token after a context of two chunks.
struct Batch {
  std::vector<int64_t> positions, slots;
  std::vector<int32_t> block_tables, query_start, seq_lens;
  BatchLayout layout;
};

int64_t slot_of(int64_t block_number, int64_t position) {
  return block_number * kBlockSize + position % kBlockSize;
}

// `num_queries` of each request are new; with `all`, every token is, so that the cache gets filled.
Batch make_batch(bool all) {
  const std::vector<int32_t> lengths = {37, 300}, new_tokens = all ? lengths : std::vector<int32_t>{9, 1};
  Batch batch;
  const int64_t max_blocks = 19;
  batch.query_start.push_back(0);
  for (size_t r = 0; r < lengths.size(); ++r) {
    for (int64_t i = 0; i < max_blocks; ++i)  // requests' blocks alternate
      batch.block_tables.push_back(static_cast<int32_t>(2 * i + static_cast<int64_t>(r)));
    for (int64_t p = lengths[r] - new_tokens[r]; p < lengths[r]; ++p) {
      batch.positions.push_back(p);
      batch.slots.push_back(slot_of(batch.block_tables[r * static_cast<size_t>(max_blocks) + static_cast<size_t>(p / kBlockSize)], p));
    }
    batch.seq_lens.push_back(lengths[r]);
    batch.query_start.push_back(batch.query_start.back() + new_tokens[r]);
  }
  batch.layout.num_tokens = static_cast<int64_t>(batch.positions.size());
  batch.layout.num_requests = 2;
  batch.layout.max_blocks = max_blocks;
  batch.layout.positions = batch.positions.data();
  batch.layout.slot_mapping = batch.slots.data();
  batch.layout.block_tables = batch.block_tables.data();
  batch.layout.query_start = batch.query_start.data();
  batch.layout.seq_lens = batch.seq_lens.data();
  return batch;
}

struct AttentionShape {
  KVDType dtype;
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t window;
  float soft_cap;
  bool alibi;
  bool causal = true;
  int64_t latent_dim = 0;  // of head_dim; 0: no latent cache
};

KVPools make_pools(const AttentionShape& shape, std::vector<uint8_t>& keys, std::vector<uint8_t>& values) {
  constexpr int64_t num_blocks = 40;
  KVPools pools{};
  pools.block_size = kBlockSize;
  pools.num_kv_heads = shape.num_kv_heads;
  pools.head_dim = shape.head_dim;
  pools.dtype = shape.dtype;
  pools.value_dim = shape.latent_dim ? shape.latent_dim : shape.head_dim;
  values.resize(static_cast<size_t>(num_blocks * shape.num_kv_heads * value_bytes(pools)));
  pools.values = shape.latent_dim ? nullptr : values.data();
  pools.keys = &keys;  // not null, so that the cache is known to be latent
  keys.resize(static_cast<size_t>(num_blocks * shape.num_kv_heads * key_bytes(pools)));
  pools.keys = keys.data();
  return pools;
}

void fill(const AttentionShape& shape, const KVPools& pools, Level level, Hash& hash) {
  Random random(5);
  const Batch batch = make_batch(true);
  const int64_t rows = batch.layout.num_tokens, q_size = shape.num_heads * shape.head_dim;
  const int64_t k_size = shape.num_kv_heads * shape.head_dim;
  const std::vector<float> q = random.floats(rows * q_size), k = random.floats(rows * k_size), v = random.floats(rows * k_size);
  const std::vector<float> cos_sin = random.floats(300 * shape.head_dim);
  std::vector<float> q_out(q.size()), k_out(k.size());
  RotaryArgs args{};
  args.layout = &batch.layout;
  args.rows = rows;
  args.pools = pools;
  if (shape.latent_dim) {
    args.k = k.data();
    args.k_tail = k.data() + tail_start(pools);
    args.k_stride = args.k_tail_stride = k_size;
    return run(rotary_for(level), args);
  }
  args.q = q.data();
  args.k = k.data();
  args.v = v.data();
  args.q_out = q_out.data();
  args.k_out = k_out.data();
  args.cos_sin = cos_sin.data();
  args.q_stride = args.q_out_stride = q_size;
  args.k_stride = args.v_stride = args.k_out_stride = k_size;
  args.num_heads = shape.num_heads;
  args.rotary_dim = shape.head_dim / 2 * 2;
  run(rotary_for(level), args);
  hash.add(not_zero(q_out));
  hash.add(not_zero(k_out));
}

void run_attention(const AttentionShape& shape, Level level, Hash& hash) {
  std::vector<uint8_t> keys, values;
  const KVPools pools = make_pools(shape, keys, values);
  fill(shape, pools, level, hash);
  hash.add(keys);
  hash.add(values);
  Random random(6);
  const Batch batch = make_batch(false);
  const int64_t q_size = shape.num_heads * shape.head_dim;
  const std::vector<float> q = random.floats(batch.layout.num_tokens * q_size), slopes = random.floats(shape.num_heads);
  std::vector<float> out(q.size());
  PagedAttentionArgs args{};
  args.out = out.data();
  args.q = q.data();
  args.alibi_slopes = shape.alibi ? slopes.data() : nullptr;
  args.layout = &batch.layout;
  args.rows = batch.layout.num_tokens;
  args.out_stride = args.q_stride = q_size;
  args.num_heads = shape.num_heads;
  args.window = shape.window;
  args.scale = 0.125f;
  args.soft_cap = shape.soft_cap;
  args.q_tail = shape.latent_dim ? q.data() + shape.num_heads * shape.latent_dim : nullptr;
  args.q_tail_stride = q_size;
  args.causal = shape.causal;
  args.pools = pools;
  run(paged_attention_for(level), args);
  hash.add(not_zero(out));
}

}  // namespace

void add_attention_cases(std::vector<Case>& all) {
  const char* const names[] = {"float32", "bfloat16", "float16", "int8", "float8"};
  const AttentionShape shapes[] = {
      {KVDType::float32, 6, 2, 64, 0, 0.0f, false},  {KVDType::float32, 4, 4, 40, 50, 0.0f, false},
      {KVDType::float32, 4, 2, 128, 0, 20.0f, true}, {KVDType::bfloat16, 6, 2, 64, 0, 0.0f, false},
      {KVDType::float16, 6, 2, 64, 0, 0.0f, false},  {KVDType::int8, 6, 2, 64, 0, 0.0f, false},
      {KVDType::int8, 4, 2, 128, 50, 0.0f, true},    {KVDType::bfloat16, 7, 1, 21, 50, 20.0f, true},
      {KVDType::int8, 8, 1, 21, 0, 20.0f, false},    {KVDType::float8, 6, 2, 64, 0, 0.0f, false},
      {KVDType::float8, 7, 1, 21, 50, 20.0f, true},
      {KVDType::float32, 14, 1, 48, 0, 0.0f, false, true, 32},    {KVDType::bfloat16, 5, 1, 112, 0, 0.0f, false, true, 80},
      {KVDType::float16, 14, 1, 48, 0, 0.0f, false, true, 32},    {KVDType::int8, 14, 1, 576, 0, 0.0f, false, true, 512},
      {KVDType::int8, 3, 1, 32, 0, 0.0f, false, true, 21},        {KVDType::bfloat16, 14, 1, 30, 0, 0.0f, false, true, 21},
      {KVDType::float32, 6, 6, 24, 0, 0.0f, false, false},        {KVDType::bfloat16, 6, 2, 32, 0, 0.0f, false, false}};
  for (const AttentionShape& shape : shapes)
    all.push_back({std::string("attention ") + names[static_cast<int>(shape.dtype)] + " " +
                       std::to_string(shape.num_heads) + "/" + std::to_string(shape.num_kv_heads) + "x" +
                       std::to_string(shape.head_dim) + (shape.latent_dim ? " latent" : "") + (shape.causal ? "" : " both ways"),
                   [=](Level level, Hash& hash) { run_attention(shape, level, hash); }});
}

}  // namespace quire
