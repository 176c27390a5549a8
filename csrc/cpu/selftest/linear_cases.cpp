// Cases of packed weights: packing, gathering rows, quantizing activations, multiplying.
#include "linear.h"
#include "pack.h"
#include "quantize.h"
#include "quantize_weight.h"
#include "selftest.h"

namespace quire {
namespace {

struct LinearShape {
  WeightKind kind;
  int64_t num_rows, num_inputs;   // N, K
  int64_t group;                  // int4: inputs per weight scale
  int64_t activation_group;       // 0: all of a row
  bool gate_up;
};

// A matrix packed at one level, and what that wrote.
struct Packed {
  std::vector<uint8_t> data, scales;
  WeightView view;
};

Packed pack_at(const LinearShape& shape, Level level, Random& random) {
  const std::vector<float> matrix = random.floats(shape.num_rows * shape.num_inputs);
  const int64_t panels = num_panels(shape.num_rows), inputs = padded_inputs(shape.kind, shape.num_inputs);
  constexpr int64_t bits[] = {32, 16, 8, 4};
  Packed packed;
  packed.data.resize(static_cast<size_t>(panels * kPanelRows * inputs * bits[static_cast<int>(shape.kind)] / 8));
  const int64_t groups = shape.kind == WeightKind::int4 ? shape.num_inputs / shape.group : 1;
  packed.scales.resize(static_cast<size_t>(panels * kPanelRows * groups * 4));
  packed.view = {packed.data.data(), packed.scales.data(), nullptr, shape.num_rows, shape.num_inputs, shape.group,
                 shape.gate_up, shape.kind};
  PackArgs args{};
  args.floats = matrix.data();
  args.dtype = DType::float32;
  args.data = packed.data.data();
  args.scales = packed.scales.data();
  args.rows = shape.num_rows;
  args.num_inputs = shape.num_inputs;
  args.group = shape.group;
  args.gate_up = shape.gate_up;
  args.kind = shape.kind;
  run(pack_for(level), args);
  return packed;
}

std::vector<float> gather_at(const WeightView& weight, Level level) {
  const std::vector<int64_t> ids = {0, weight.num_rows - 1, weight.num_rows / 2};
  BatchLayout layout;
  layout.token_ids = ids.data();
  std::vector<float> out(ids.size() * static_cast<size_t>(weight.num_inputs));
  GatherArgs args{};
  args.out = out.data();
  args.rows = static_cast<int64_t>(ids.size());
  args.out_stride = weight.num_inputs;
  args.layout = &layout;
  args.weight = weight;
  run(gather_for(level), args);
  return out;
}

// The same matrix as plain integers and scales.
void quantize_plainly(const LinearShape& shape, Level level, Hash& hash) {
  Random random(3);
  const std::vector<float> matrix = random.floats(shape.num_rows * shape.num_inputs);
  const int64_t groups = shape.kind == WeightKind::int4 ? shape.num_inputs / shape.group : 1;
  std::vector<uint8_t> values(matrix.size()), scales(static_cast<size_t>(shape.num_rows * groups * 4));
  QuantizeWeightArgs args{};
  args.floats = matrix.data();
  args.dtype = DType::float32;
  args.rows = shape.num_rows;
  args.row_stride = args.num_inputs = shape.num_inputs;
  args.group = shape.group;
  args.values = values.data();
  args.scales = scales.data();
  args.kind = shape.kind;
  run(quantize_weight_for(level), args);
  hash.add(values);
  hash.add(scales);
}

// Rows and their sums after `quantize`.
struct Quantized {
  std::vector<uint8_t> values;
  std::vector<float> scales;
  std::vector<int32_t> offsets;
  QuantizedRows view;
};

Quantized quantize_at(const LinearShape& shape, const std::vector<float>& x, int64_t rows, Level level) {
  const int64_t whole = divide_up(shape.num_inputs, 4) * 4;
  int64_t step = shape.activation_group ? shape.activation_group : whole;
  if (shape.kind == WeightKind::int4 && shape.group < step) step = shape.group;
  const int64_t stride = divide_up(shape.num_inputs, 64) * 64, num_steps = divide_up(shape.num_inputs, step);
  Quantized q;
  q.values.resize(static_cast<size_t>(rows * stride));
  q.scales.resize(static_cast<size_t>(rows * num_steps));
  q.offsets.resize(static_cast<size_t>(rows * num_steps));
  q.view = {reinterpret_cast<int8_t*>(q.values.data()), q.scales.data(), q.offsets.data(), stride, num_steps, step};
  QuantizeArgs args{};
  args.x = x.data();
  args.rows = rows;
  args.x_stride = args.dim = shape.num_inputs;
  args.activation_group = shape.activation_group ? shape.activation_group : shape.num_inputs;
  args.multiplier = shape.kind == WeightKind::int8 ? -128 : -8;
  args.out = q.view;
  run(quantize_for(level), args);
  return q;
}

void run_linear(const LinearShape& shape, Level level, Hash& hash) {
  constexpr int64_t rows = 14;  // more than one tile of every height
  Random random(3);
  const Packed packed = pack_at(shape, level, random);
  hash.add(packed.data);
  hash.add(packed.scales);
  hash.add(gather_at(packed.view, level));
  const std::vector<float> x = random.floats(rows * shape.num_inputs), bias = random.floats(shape.num_rows);
  const int64_t width = shape.gate_up ? shape.num_rows / 2 : shape.num_rows;
  std::vector<float> out(static_cast<size_t>(rows * width));
  if (shape.kind == WeightKind::float32) {
    LinearArgs args{};
    args.out = out.data();
    args.x = x.data();
    args.bias = bias.data();
    args.rows = rows;
    args.out_stride = width;
    args.x_stride = shape.num_inputs;
    args.weight = packed.view;
    run(linear_for(level), args);
  } else if (shape.kind == WeightKind::bfloat16) {
    const int64_t stride = divide_up(shape.num_inputs, 2) * 2;
    std::vector<uint16_t> narrow(static_cast<size_t>(rows * stride));
    QuantizeArgs rounding{};
    rounding.x = x.data();
    rounding.rows = rows;
    rounding.x_stride = rounding.dim = shape.num_inputs;
    rounding.narrow_out = reinterpret_cast<bf16*>(narrow.data());
    rounding.narrow_stride = stride;
    run(quantize_for(level), rounding);
    hash.add(narrow);
    Bf16LinearArgs args{};
    args.out = out.data();
    args.x = rounding.narrow_out;
    args.bias = bias.data();
    args.rows = rows;
    args.out_stride = width;
    args.x_stride = stride;
    args.weight = packed.view;
    run(bf16_linear_for(level), args);
  } else {
    quantize_plainly(shape, level, hash);
    const Quantized q = quantize_at(shape, x, rows, level);
    hash.add(q.values);
    hash.add(q.scales);
    QuantLinearArgs args{};
    args.out = out.data();
    args.bias = bias.data();
    args.rows = rows;
    args.out_stride = width;
    args.x = q.view;
    args.weight = packed.view;
    run(quant_linear_for(level), args);
  }
  hash.add(out);
}

}  // namespace

void add_linear_cases(std::vector<Case>& all) {
  const char* const kind_names[] = {"float32", "bfloat16", "int8", "int4"};
  const LinearShape shapes[] = {
      {WeightKind::float32, 70, 37, 0, 0, false}, {WeightKind::float32, 64, 96, 0, 0, true},
      {WeightKind::bfloat16, 70, 37, 0, 0, false}, {WeightKind::bfloat16, 64, 96, 0, 0, true},
      {WeightKind::int8, 70, 37, 0, 0, false}, {WeightKind::int8, 70, 300, 0, 128, false},
      {WeightKind::int8, 64, 192, 0, 64, true}, {WeightKind::int4, 70, 128, 32, 32, false},
      {WeightKind::int4, 70, 256, 128, 0, false}, {WeightKind::int4, 64, 256, 64, 128, true}};
  for (const LinearShape& shape : shapes)
    all.push_back({std::string("linear ") + kind_names[static_cast<int>(shape.kind)] + " " +
                       std::to_string(shape.num_rows) + "x" + std::to_string(shape.num_inputs) + " " +
                       std::to_string(shape.activation_group),
                   [=](Level level, Hash& hash) { run_linear(shape, level, hash); }});
}

}  // namespace quire
