// Python's side of the linear kernels, of quantization and of packing.
#include <nanobind/ndarray.h>

#include "bind.h"
#include "grouped.h"
#include "head_linear.h"
#include "pack.h"
#include "quantize.h"

#include <sys/mman.h>

namespace quire {
namespace {

WeightView view(uintptr_t data, uintptr_t scales, uintptr_t zeros, uintptr_t table, int64_t num_rows, int64_t num_inputs,
                int64_t group, bool gate_up, int kind) {
  return {pointer<const void>(data), pointer<const void>(scales), pointer<const uint8_t>(zeros), num_rows, num_inputs,
          group, gate_up, static_cast<WeightKind>(kind), {}, pointer<const float>(table)};
}

WeightView grouped_view(uintptr_t data, uintptr_t scales, uintptr_t zeros, uintptr_t minima, uintptr_t scale_factors,
                        uintptr_t minimum_factors, uintptr_t table, int64_t num_rows, int64_t num_inputs, int64_t group,
                        bool gate_up, int kind) {
  WeightView weight = view(data, 0, zeros, table, num_rows, num_inputs, group, gate_up, kind);
  weight.groups = {pointer<const void>(scales), pointer<const void>(minima), pointer<const void>(scale_factors),
                   pointer<const void>(minimum_factors)};
  return weight;
}

WeightView row_table_view(uintptr_t data, uintptr_t tables, uintptr_t outlier_starts, uintptr_t outlier_columns,
                          uintptr_t outlier_values, int64_t num_rows, int64_t num_inputs, int64_t group, bool gate_up, int kind) {
  WeightView weight = view(data, 0, 0, tables, num_rows, num_inputs, group, gate_up, kind);
  weight.outliers = {pointer<const int32_t>(outlier_starts), pointer<const int32_t>(outlier_columns),
                     pointer<const float>(outlier_values)};
  return weight;
}

using ProductPtr = std::shared_ptr<Product>;

template <typename Args>
ProductPtr make_product(Kernel<Args> kernel, const Args& args) {
  return std::make_shared<ProductCall<Args>>(kernel, args);
}

// What the three products have in common.
template <typename Args>
Args product_args(uintptr_t out, int64_t out_stride, uintptr_t bias, int64_t rows, const WeightView& weight,
                  int activation, uintptr_t argmax_ids, uintptr_t argmax_values) {
  Args args{};
  args.out = pointer<float>(out);
  args.bias = pointer<const float>(bias);
  args.rows = rows;
  args.out_stride = out_stride;
  args.weight = weight;
  args.activation = static_cast<Activation>(activation);
  args.argmax = {pointer<int64_t>(argmax_ids), pointer<float>(argmax_values)};
  return args;
}

ProductPtr make_linear(uintptr_t out, int64_t out_stride, uintptr_t x, int64_t x_stride, uintptr_t bias, int64_t rows,
                           const WeightView& weight, int activation, uintptr_t argmax_ids, uintptr_t argmax_values,
                           int level) {
  auto args = product_args<LinearArgs>(out, out_stride, bias, rows, weight, activation, argmax_ids, argmax_values);
  args.x = pointer<const float>(x);
  args.x_stride = x_stride;
  const Level checked = checked_level(level);
  switch (weight.kind) {
    case WeightKind::table4: return make_product(table_linear_for(checked), args);
    case WeightKind::row_table4: return make_product(row_table_linear_for(checked), args);
    default: return make_product(linear_for(checked), args);
  }
}

ProductPtr make_bf16_linear(uintptr_t out, int64_t out_stride, uintptr_t x, int64_t x_stride, uintptr_t bias,
                                int64_t rows, const WeightView& weight, int activation, uintptr_t argmax_ids,
                                uintptr_t argmax_values, int level) {
  auto args = product_args<Bf16LinearArgs>(out, out_stride, bias, rows, weight, activation, argmax_ids, argmax_values);
  args.x = pointer<const bf16>(x);
  args.x_stride = x_stride;
  const Level checked = checked_level(level);
  return make_product(weight.kind == WeightKind::float8 ? float8_linear_for(checked) : bf16_linear_for(checked), args);
}

ProductPtr make_quant_linear(uintptr_t out, int64_t out_stride, const QuantizedRows& x, uintptr_t bias, int64_t rows,
                                 const WeightView& weight, int activation, uintptr_t argmax_ids, uintptr_t argmax_values,
                                 int level) {
  auto args = product_args<QuantLinearArgs>(out, out_stride, bias, rows, weight, activation, argmax_ids, argmax_values);
  args.x = x;
  return make_product((is_grouped(weight.kind) ? grouped_linear_for : quant_linear_for)(checked_level(level)), args);
}

InstructionPtr make_head_linear(uintptr_t out, int64_t out_stride, uintptr_t x, int64_t x_stride, int64_t rows,
                                int64_t num_heads, int64_t num_outputs, const WeightView& weight, int level) {
  const HeadLinearArgs args = {pointer<float>(out), pointer<const float>(x), rows, out_stride, x_stride, num_heads,
                               num_outputs, weight};
  return make_instruction(head_linear_for(checked_level(level)), args);
}

QuantizedRows quantized_rows(uintptr_t values, uintptr_t scales, uintptr_t offsets, int64_t stride, int64_t num_steps,
                             int64_t step) {
  return {pointer<int8_t>(values), pointer<float>(scales), pointer<int32_t>(offsets), stride, num_steps, step};
}

InstructionPtr make_quantize(uintptr_t x, int64_t x_stride, int64_t rows, int64_t dim, const QuantizedRows& out,
                             int64_t activation_group, int32_t multiplier, bool half_scales, uintptr_t narrow_out, int64_t narrow_stride,
                             uintptr_t norm_weight, uintptr_t norm_bias, bool is_layer_norm, uintptr_t residual,
                             uintptr_t residual_out, double eps, int level) {
  QuantizeArgs args{};
  args.x = pointer<const float>(x);
  args.rows = rows;
  args.x_stride = x_stride;
  args.dim = dim;
  args.activation_group = activation_group;
  args.multiplier = multiplier;
  args.half_scales = half_scales;
  args.out = out;
  args.narrow_out = pointer<bf16>(narrow_out);
  args.narrow_stride = narrow_stride;
  args.norm_weight = pointer<const float>(norm_weight);
  args.norm_bias = pointer<const float>(norm_bias);
  args.is_layer_norm = is_layer_norm;
  args.residual = pointer<const float>(residual);
  args.residual_out = pointer<float>(residual_out);
  args.eps = static_cast<float>(eps);
  return make_instruction(quantize_for(checked_level(level)), args);
}

InstructionPtr make_pack(uintptr_t floats, uintptr_t values, int dtype, int64_t first_row, int64_t num_given,
                         int64_t row_stride, uintptr_t data, uintptr_t scales, int64_t rows, int64_t num_inputs,
                         int64_t group, bool gate_up, int kind, int level) {
  PackArgs args{};
  args.floats = pointer<const void>(floats);
  args.values = pointer<const uint8_t>(values);
  args.dtype = static_cast<DType>(dtype);
  args.first_row = first_row;
  args.num_given = num_given;
  args.row_stride = row_stride;
  args.data = pointer<void>(data);
  args.scales = pointer<void>(scales);
  args.rows = rows;
  args.num_inputs = num_inputs;
  args.group = group;
  args.gate_up = gate_up;
  args.kind = static_cast<WeightKind>(kind);
  return make_instruction(pack_for(checked_level(level)), args);
}

InstructionPtr make_gather(uintptr_t out, int64_t out_stride, int64_t rows, std::shared_ptr<BatchLayout> layout,
                           bool by_position, const WeightView& weight, int level) {
  GatherArgs args{};
  args.out = pointer<float>(out);
  args.rows = rows;
  args.out_stride = out_stride;
  args.layout = layout.get();
  args.by_position = by_position;
  args.weight = weight;
  return make_instruction(gather_for(checked_level(level)), args, layout);
}

// Bytes of zeroed memory of its own, in huge pages if wanted and where the system has them. Pages are touched first by the
// thread that writes them first.
nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> allocate(size_t num_bytes, bool huge_pages) {
  constexpr size_t huge_page = size_t{2} << 20;
  struct Block { void* base; size_t size; };
  const bool large = huge_pages && num_bytes >= huge_page;
  const size_t size = (num_bytes > 0 ? num_bytes : 1) + (large ? huge_page : 0);
  void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  uintptr_t start = reinterpret_cast<uintptr_t>(base);
  if (large) {
    start = (start + huge_page - 1) / huge_page * huge_page;
#ifdef MADV_HUGEPAGE
    madvise(reinterpret_cast<void*>(start), num_bytes, MADV_HUGEPAGE);
#endif
  } else {
#ifdef MADV_NOHUGEPAGE
    madvise(base, size, MADV_NOHUGEPAGE);
#endif
  }
  nb::capsule owner(new Block{base, size}, [](void* p) noexcept {
    const Block* block = static_cast<Block*>(p);
    munmap(block->base, block->size);
    delete block;
  });
  return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(reinterpret_cast<uint8_t*>(start), {num_bytes}, owner);
}

}  // namespace

void bind_linear(nb::module_& m) {
  m.attr("WEIGHT_KINDS") = nb::make_tuple("float32", "bfloat16", "int8", "int4", "uint8", "uint4", "uint6", "uint5", "float8",
                                          "table4", "float16", "row_table4", "uint3", "uint2", "lookup4");
  m.attr("PANEL_ROWS") = kPanelRows;
  nb::class_<WeightView>(m, "WeightView");
  nb::class_<QuantizedRows>(m, "QuantizedRows");
  nb::class_<Product, Instruction>(m, "Product");
  m.def("weight_view", &view, "data"_a, "scales"_a, "zeros"_a, "table"_a, "num_rows"_a, "num_inputs"_a, "group"_a, "gate_up"_a,
        "kind"_a);
  m.def("grouped_view", &grouped_view, "data"_a, "scales"_a, "zeros"_a, "minima"_a, "scale_factors"_a, "minimum_factors"_a,
        "table"_a, "num_rows"_a, "num_inputs"_a, "group"_a, "gate_up"_a, "kind"_a);
  m.def("row_table_view", &row_table_view, "data"_a, "tables"_a, "outlier_starts"_a, "outlier_columns"_a, "outlier_values"_a,
        "num_rows"_a, "num_inputs"_a, "group"_a, "gate_up"_a, "kind"_a);
  m.def("quantized_rows", &quantized_rows, "values"_a, "scales"_a, "offsets"_a, "stride"_a, "num_steps"_a, "step"_a);
  m.def("linear", &make_linear, "out"_a, "out_stride"_a, "x"_a, "x_stride"_a, "bias"_a, "rows"_a, "weight"_a,
        "activation"_a, "argmax_ids"_a, "argmax_values"_a, "level"_a);
  m.def("bf16_linear", &make_bf16_linear, "out"_a, "out_stride"_a, "x"_a, "x_stride"_a, "bias"_a, "rows"_a, "weight"_a,
        "activation"_a, "argmax_ids"_a, "argmax_values"_a, "level"_a);
  m.def("quant_linear", &make_quant_linear, "out"_a, "out_stride"_a, "x"_a, "bias"_a, "rows"_a, "weight"_a,
        "activation"_a, "argmax_ids"_a, "argmax_values"_a, "level"_a);
  m.def("head_linear", &make_head_linear, "out"_a, "out_stride"_a, "x"_a, "x_stride"_a, "rows"_a, "num_heads"_a,
        "num_outputs"_a, "weight"_a, "level"_a);
  m.def("quantize", &make_quantize, "x"_a, "x_stride"_a, "rows"_a, "dim"_a, "out"_a, "activation_group"_a,
        "multiplier"_a, "half_scales"_a, "narrow_out"_a, "narrow_stride"_a, "norm_weight"_a, "norm_bias"_a, "is_layer_norm"_a, "residual"_a,
        "residual_out"_a, "eps"_a, "level"_a);
  m.def("pack", &make_pack, "floats"_a, "values"_a, "dtype"_a, "first_row"_a, "num_given"_a, "row_stride"_a, "data"_a,
        "scales"_a, "rows"_a, "num_inputs"_a, "group"_a, "gate_up"_a, "kind"_a, "level"_a);
  m.def("gather", &make_gather, "out"_a, "out_stride"_a, "rows"_a, "layout"_a, "by_position"_a, "weight"_a,
        "level"_a);
  m.def("allocate", &allocate, "num_bytes"_a, "huge_pages"_a,
        "Zeroed memory of its own, in huge pages if wanted and where the system has them.");
}

}  // namespace quire
