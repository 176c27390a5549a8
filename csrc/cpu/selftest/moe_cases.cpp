// Cases of a mixture of experts: choosing, sorting by expert, products over each expert's rows, the weighted sum.
#include "grouped.h"
#include "moe.h"
#include "pack.h"
#include "quantize.h"
#include "selftest.h"

namespace quire {
namespace {

struct RouteShape {
  int64_t num_experts, top_k, num_groups, top_groups;
  bool is_softmax, counts_two, has_bias;
};

void run_route(const RouteShape& shape, Level level, Hash& hash) {
  constexpr int64_t rows = 9;
  Random random(11);
  const std::vector<float> logits = random.floats(rows * (shape.num_experts + 2)), bias = random.floats(shape.num_experts);
  std::vector<int32_t> ids(static_cast<size_t>(rows * shape.top_k));
  std::vector<float> weights(ids.size());
  RouteArgs args{};
  args.ids = ids.data();
  args.weights = weights.data();
  args.logits = logits.data();
  args.correction_bias = shape.has_bias ? bias.data() : nullptr;
  args.rows = rows;
  args.logits_stride = shape.num_experts + 2;
  args.num_experts = shape.num_experts;
  args.top_k = shape.top_k;
  args.num_groups = shape.num_groups;
  args.top_groups = shape.top_groups;
  args.scale = 2.5f;
  args.is_softmax = shape.is_softmax;
  args.renormalized = shape.top_k > 1;
  args.counts_two = shape.counts_two;
  run(route_for(level), args);
  hash.add(ids);
  hash.add(not_zero(weights));
}

// Experts of one matrix each, packed one behind the other.
struct Stack {
  std::vector<uint8_t> data, scales;
  std::vector<WeightView> each;
};

Stack pack_stack(WeightKind kind, int64_t num_experts, int64_t num_rows, int64_t num_inputs, Level level, Random& random) {
  const int64_t padded = num_panels(num_rows) * kPanelRows, bytes = kind == WeightKind::int8 ? 1 : 4;
  const int64_t size = padded * padded_inputs(kind, num_inputs) * bytes, scales = padded * 4;
  Stack stack;
  stack.data.resize(static_cast<size_t>(num_experts * size));
  stack.scales.resize(static_cast<size_t>(num_experts * scales));
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const std::vector<float> matrix = random.floats(num_rows * num_inputs);
    PackArgs args{};
    args.floats = matrix.data();
    args.dtype = DType::float32;
    args.num_given = args.rows = num_rows;
    args.row_stride = args.num_inputs = num_inputs;
    args.data = stack.data.data() + expert * size;
    args.scales = stack.scales.data() + expert * scales;
    args.kind = kind;
    run(pack_for(level), args);
    stack.each.push_back({args.data, args.scales, nullptr, num_rows, num_inputs, 0, false, kind});
  }
  return stack;
}

// Rows in one buffer or three, as a product reads them.
struct Rows {
  std::vector<float> floats, scales;
  std::vector<int32_t> offsets;
  std::vector<uint8_t> values;
  int64_t dim;

  int64_t stride() const { return divide_up(dim, 64) * 64; }
  QuantizedRows quantized() {
    return {reinterpret_cast<int8_t*>(values.data()), scales.data(), offsets.data(), stride(), 1, divide_up(dim, 4) * 4};
  }
  // The buffers as copies from this one to another, row by row.
  std::vector<RowCopy> copies_to(Rows& other, bool is_int8) {
    const auto copy = [](auto& from, auto& to, int64_t width) {
      const int64_t num_bytes = width * static_cast<int64_t>(sizeof from[0]);
      return RowCopy{reinterpret_cast<const char*>(from.data()), num_bytes, reinterpret_cast<char*>(to.data()), num_bytes};
    };
    if (!is_int8) return {copy(floats, other.floats, dim)};
    return {copy(values, other.values, stride()), copy(scales, other.scales, 1), copy(offsets, other.offsets, 1)};
  }
};

Rows make_rows(int64_t count, int64_t dim) {
  Rows rows;
  rows.dim = dim;
  rows.floats.resize(static_cast<size_t>(count * dim));
  rows.scales.resize(static_cast<size_t>(count));
  rows.offsets.resize(static_cast<size_t>(count));
  rows.values.resize(static_cast<size_t>(count * rows.stride()));
  return rows;
}

void quantize_rows(Rows& rows, int64_t count, Level level) {
  QuantizeArgs args{};
  args.x = rows.floats.data();
  args.rows = count;
  args.x_stride = args.dim = args.activation_group = rows.dim;
  args.multiplier = -128;
  args.out = rows.quantized();
  run(quantize_for(level), args);
}

std::shared_ptr<Product> product_of(const WeightView& weight, Rows& rows, std::vector<float>& out, Level level) {
  if (weight.kind == WeightKind::int8) {
    QuantLinearArgs args{};
    args.out = out.data();
    args.out_stride = weight.num_rows;
    args.x = rows.quantized();
    args.weight = weight;
    return std::make_shared<ProductCall<QuantLinearArgs>>(quant_linear_for(level), args);
  }
  LinearArgs args{};
  args.out = out.data();
  args.out_stride = weight.num_rows;
  args.x = rows.floats.data();
  args.x_stride = rows.dim;
  args.weight = weight;
  return std::make_shared<ProductCall<LinearArgs>>(linear_for(level), args);
}

struct ExpertsShape {
  WeightKind kind;
  int64_t tokens, num_experts, top_k, num_rows, num_inputs;
};

void run_experts(const ExpertsShape& shape, Level level, Hash& hash) {
  Random random(12);
  const bool is_int8 = shape.kind == WeightKind::int8;
  const int64_t pairs = shape.tokens * shape.top_k, width = shape.num_rows;
  const Stack stack = pack_stack(shape.kind, shape.num_experts, width, shape.num_inputs, level, random);
  Rows tokens = make_rows(shape.tokens, shape.num_inputs), sorted = make_rows(pairs, shape.num_inputs);
  tokens.floats = random.floats(shape.tokens * shape.num_inputs);
  if (is_int8) quantize_rows(tokens, shape.tokens, level);
  // Most tokens go to the first experts, and none to the last.
  std::vector<int32_t> ids(static_cast<size_t>(pairs)), places(ids.size()), starts(static_cast<size_t>(shape.num_experts + 1));
  for (int32_t& id : ids) id = static_cast<int32_t>(random.next() % (1 + random.next() % (shape.num_experts - 1)));
  std::vector<float> answers(static_cast<size_t>(pairs * width)), alone(answers.size());
  std::vector<std::shared_ptr<Product>> products;
  for (const WeightView& weight : stack.each) products.push_back(product_of(weight, sorted, answers, level));
  Dispatch(ids.data(), places.data(), starts.data(), shape.num_experts, shape.tokens, shape.top_k,
           tokens.copies_to(sorted, is_int8)).run_alone();
  GroupedProduct(products, starts.data()).run_alone();
  hash.add(places);
  hash.add(not_zero(answers));
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const WeightView& weight = stack.each[static_cast<size_t>(ids[static_cast<size_t>(pair)])];
    const auto product = product_of(weight, tokens, alone, level);
    const int64_t token = pair / shape.top_k;
    ThreadPool::instance().run([&](const Team& team) { product->run_part(token, 1, team); });
    const float* found = answers.data() + places[static_cast<size_t>(pair)] * width;
    if (std::memcmp(found, alone.data() + token * width, static_cast<size_t>(width) * sizeof(float)) == 0) continue;
    std::fprintf(stderr, "pair %d has other bits than its row alone\n", static_cast<int>(pair));
    std::abort();
  }
  const std::vector<float> weights = random.floats(pairs);
  std::vector<float> out(static_cast<size_t>(shape.tokens * width));
  CombineArgs args{};
  args.out = out.data();
  args.answers = answers.data();
  args.places = places.data();
  args.weights = weights.data();
  args.rows = shape.tokens;
  args.out_stride = args.dim = width;
  args.top_k = shape.top_k;
  run(combine_for(level), args);
  hash.add(not_zero(out));
}

}  // namespace

void add_moe_cases(std::vector<Case>& all) {
  const RouteShape routes[] = {{8, 2, 1, 1, true, false, false},   {130, 8, 1, 1, true, false, true},
                               {24, 5, 6, 3, true, false, false},  {32, 6, 4, 2, false, true, true},
                               {1, 1, 1, 1, false, false, false}};
  for (const RouteShape& shape : routes)
    all.push_back({"route " + std::to_string(shape.top_k) + " of " + std::to_string(shape.num_experts),
                   [=](Level level, Hash& hash) { run_route(shape, level, hash); }});
  const ExpertsShape shapes[] = {{WeightKind::float32, 1, 8, 2, 70, 37},    {WeightKind::float32, 200, 5, 3, 33, 64},
                                 {WeightKind::int8, 1, 6, 3, 600, 128},     {WeightKind::int8, 150, 4, 2, 100, 90}};
  for (const ExpertsShape& shape : shapes)
    all.push_back({std::string("experts ") + (shape.kind == WeightKind::int8 ? "int8" : "float32") + " T=" +
                       std::to_string(shape.tokens),
                   [=](Level level, Hash& hash) { run_experts(shape, level, hash); }});
}

}  // namespace quire
