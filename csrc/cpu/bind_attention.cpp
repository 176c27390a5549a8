// Python's side of the paged cache: its pools, rotary embedding with cache write, attention; and of silu_and_mul.
#include <memory>

#include "activation.h"
#include "attention.h"
#include "bind.h"
#include "rotary.h"

namespace quire {
namespace {

using LayoutPtr = std::shared_ptr<BatchLayout>;

KVPools make_pools(uintptr_t keys, uintptr_t values, int64_t block_size, int64_t num_kv_heads, int64_t head_dim,
                   int dtype) {
  KVPools pools;
  pools.keys = pointer<void>(keys);
  pools.values = pointer<void>(values);
  pools.block_size = block_size;
  pools.num_kv_heads = num_kv_heads;
  pools.head_dim = head_dim;
  pools.dtype = static_cast<KVDType>(dtype);
  pools.value_dim = head_dim;
  return pools;
}

KVPools latent_pools(uintptr_t cache, int64_t block_size, int64_t latent_dim, int64_t rope_dim, int dtype) {
  KVPools pools = make_pools(cache, 0, block_size, 1, 0, dtype);
  pools.value_dim = latent_dim;
  pools.head_dim = tail_start(pools) + rope_dim;
  return pools;
}

InstructionPtr rotary(uintptr_t q, int64_t q_stride, uintptr_t q_out, int64_t q_out_stride, int64_t num_heads,
                      uintptr_t k, int64_t k_stride, uintptr_t k_out, int64_t k_out_stride, uintptr_t v,
                      int64_t v_stride, uintptr_t cos_sin, int64_t rotary_dim, const KVPools& pools, LayoutPtr layout,
                      int level) {
  RotaryArgs args{};
  args.q = pointer<const float>(q);
  args.k = pointer<const float>(k);
  args.v = pointer<const float>(v);
  args.q_out = pointer<float>(q_out);
  args.k_out = pointer<float>(k_out);
  args.cos_sin = pointer<const float>(cos_sin);
  args.layout = layout.get();
  args.rows = layout->num_tokens;
  args.q_stride = q_stride;
  args.k_stride = k_stride;
  args.v_stride = v_stride;
  args.q_out_stride = q_out_stride;
  args.k_out_stride = k_out_stride;
  args.num_heads = num_heads;
  args.rotary_dim = rotary_dim;
  args.pools = pools;
  return make_instruction(rotary_for(checked_level(level)), args, std::move(layout));
}

InstructionPtr write_latent(uintptr_t latent, int64_t latent_stride, uintptr_t rope_key, int64_t rope_key_stride,
                            const KVPools& pools, LayoutPtr layout, int level) {
  RotaryArgs args{};
  args.k = pointer<const float>(latent);
  args.k_tail = pointer<const float>(rope_key);
  args.layout = layout.get();
  args.rows = layout->num_tokens;
  args.k_stride = latent_stride;
  args.k_tail_stride = rope_key_stride;
  args.pools = pools;
  return make_instruction(rotary_for(checked_level(level)), args, std::move(layout));
}

InstructionPtr latent_attention(uintptr_t out, int64_t out_stride, uintptr_t q, int64_t q_stride, uintptr_t q_rope,
                                int64_t q_rope_stride, int64_t num_heads, const KVPools& pools, LayoutPtr layout,
                                double scale, int level) {
  PagedAttentionArgs args{};
  args.out = pointer<float>(out);
  args.q = pointer<const float>(q);
  args.q_tail = pointer<const float>(q_rope);
  args.layout = layout.get();
  args.rows = layout->num_tokens;
  args.out_stride = out_stride;
  args.q_stride = q_stride;
  args.q_tail_stride = q_rope_stride;
  args.num_heads = num_heads;
  args.scale = static_cast<float>(scale);
  args.causal = true;
  args.pools = pools;
  return make_instruction(paged_attention_for(checked_level(level)), args, std::move(layout));
}

InstructionPtr paged_attention(uintptr_t out, int64_t out_stride, uintptr_t q, int64_t q_stride, int64_t num_heads,
                               const KVPools& pools, LayoutPtr layout, double scale, int64_t window,
                               uintptr_t alibi_slopes, double soft_cap, bool causal, int level) {
  PagedAttentionArgs args{};
  args.out = pointer<float>(out);
  args.q = pointer<const float>(q);
  args.alibi_slopes = pointer<const float>(alibi_slopes);
  args.layout = layout.get();
  args.rows = layout->num_tokens;
  args.out_stride = out_stride;
  args.q_stride = q_stride;
  args.num_heads = num_heads;
  args.window = window;
  args.scale = static_cast<float>(scale);
  args.soft_cap = static_cast<float>(soft_cap);
  args.causal = causal;
  args.pools = pools;
  return make_instruction(paged_attention_for(checked_level(level)), args, std::move(layout));
}

InstructionPtr silu_and_mul(uintptr_t out, uintptr_t x, int64_t rows, int64_t dim, int dtype, int level) {
  const SiluAndMulArgs args = {pointer<void>(out), pointer<const void>(x), rows, dim, static_cast<DType>(dtype)};
  return make_instruction(silu_and_mul_for(checked_level(level)), args);
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.attr("KV_FLOAT32") = static_cast<int>(KVDType::float32);
  m.attr("KV_BFLOAT16") = static_cast<int>(KVDType::bfloat16);
  m.attr("KV_FLOAT16") = static_cast<int>(KVDType::float16);
  m.attr("KV_INT8") = static_cast<int>(KVDType::int8);
  m.attr("KV_FLOAT8") = static_cast<int>(KVDType::float8);
  nb::class_<KVPools>(m, "KVPools")
      .def("__init__", [](KVPools* self, uintptr_t keys, uintptr_t values, int64_t block_size, int64_t num_kv_heads,
                          int64_t head_dim, int dtype) {
        new (self) KVPools(make_pools(keys, values, block_size, num_kv_heads, head_dim, dtype));
      }, "keys"_a, "values"_a, "block_size"_a, "num_kv_heads"_a, "head_dim"_a, "dtype"_a);
  m.def("latent_pools", &latent_pools, "cache"_a, "block_size"_a, "latent_dim"_a, "rope_dim"_a, "dtype"_a);
  m.def("write_latent", &write_latent, "latent"_a, "latent_stride"_a, "rope_key"_a, "rope_key_stride"_a, "pools"_a,
        "layout"_a, "level"_a);
  m.def("latent_attention", &latent_attention, "out"_a, "out_stride"_a, "q"_a, "q_stride"_a, "q_rope"_a, "q_rope_stride"_a,
        "num_heads"_a, "pools"_a, "layout"_a, "scale"_a, "level"_a);
  m.def("rotary", &rotary, "q"_a, "q_stride"_a, "q_out"_a, "q_out_stride"_a, "num_heads"_a, "k"_a, "k_stride"_a,
        "k_out"_a, "k_out_stride"_a, "v"_a, "v_stride"_a, "cos_sin"_a, "rotary_dim"_a, "pools"_a, "layout"_a, "level"_a);
  m.def("paged_attention", &paged_attention, "out"_a, "out_stride"_a, "q"_a, "q_stride"_a, "num_heads"_a, "pools"_a,
        "layout"_a, "scale"_a, "window"_a, "alibi_slopes"_a, "soft_cap"_a, "causal"_a, "level"_a);
  m.def("silu_and_mul", &silu_and_mul, "out"_a, "x"_a, "rows"_a, "dim"_a, "dtype"_a, "level"_a);
}

}  // namespace quire
