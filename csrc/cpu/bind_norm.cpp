// Python's side of the norms, and of what goes element by element between layers.
#include "bind.h"
#include "layer_norm.h"
#include "pointwise.h"
#include "rms_norm.h"

namespace quire {
namespace {

InstructionPtr rms_norm(uintptr_t out, uintptr_t residual_out, uintptr_t x, uintptr_t weight, uintptr_t residual,
                        int64_t rows, int64_t heads, int64_t dim, int64_t x_stride, double eps, int dtype, int weight_dtype, int level) {
  RmsNormArgs args;
  args.out = pointer<void>(out);
  args.residual_out = pointer<void>(residual_out);
  args.x = pointer<const void>(x);
  args.weight = pointer<const void>(weight);
  args.residual = pointer<const void>(residual);
  args.rows = rows;
  args.heads = heads;
  args.dim = dim;
  args.x_stride = x_stride;
  args.eps = static_cast<float>(eps);
  args.dtype = static_cast<DType>(dtype);
  args.weight_dtype = static_cast<DType>(weight_dtype);
  return make_instruction(rms_norm_for(checked_level(level)), args);
}

InstructionPtr layer_norm(uintptr_t out, uintptr_t residual_out, uintptr_t x, uintptr_t weight, uintptr_t bias,
                          uintptr_t residual, int64_t rows, int64_t heads, int64_t dim, int64_t x_stride,
                          int64_t weight_stride, double eps, int dtype, int weight_dtype, int level) {
  LayerNormArgs args;
  args.out = pointer<void>(out);
  args.residual_out = pointer<void>(residual_out);
  args.x = pointer<const void>(x);
  args.weight = pointer<const void>(weight);
  args.bias = pointer<const void>(bias);
  args.residual = pointer<const void>(residual);
  args.rows = rows;
  args.heads = heads;
  args.dim = dim;
  args.x_stride = x_stride;
  args.weight_stride = weight_stride;
  args.eps = static_cast<float>(eps);
  args.dtype = static_cast<DType>(dtype);
  args.weight_dtype = static_cast<DType>(weight_dtype);
  return make_instruction(layer_norm_for(checked_level(level)), args);
}

InstructionPtr pointwise(uintptr_t out, int64_t out_stride, uintptr_t x, int64_t x_stride, uintptr_t y, int64_t y_stride,
                         uintptr_t columns, int64_t rows, int64_t dim, double factor, int kind, int level) {
  PointwiseArgs args;
  args.out = pointer<float>(out);
  args.x = pointer<const float>(x);
  args.y = pointer<const float>(y);
  args.rows = rows;
  args.dim = dim;
  args.out_stride = out_stride;
  args.x_stride = x_stride;
  args.y_stride = y_stride;
  args.columns = pointer<const int64_t>(columns);
  args.factor = static_cast<float>(factor);
  args.kind = static_cast<Pointwise>(kind);
  return make_instruction(pointwise_for(checked_level(level)), args);
}

}  // namespace

void bind_norm(nb::module_& m) {
  m.def("rms_norm", &rms_norm, "out"_a, "residual_out"_a, "x"_a, "weight"_a, "residual"_a, "rows"_a, "heads"_a, "dim"_a,
        "x_stride"_a, "eps"_a, "dtype"_a, "weight_dtype"_a, "level"_a);
  m.def("layer_norm", &layer_norm, "out"_a, "residual_out"_a, "x"_a, "weight"_a, "bias"_a, "residual"_a, "rows"_a, "heads"_a,
        "dim"_a, "x_stride"_a, "weight_stride"_a, "eps"_a, "dtype"_a, "weight_dtype"_a, "level"_a);
  m.attr("POINTWISE") = nb::make_tuple("add", "multiply", "soft_cap", "select");
  m.def("pointwise", &pointwise, "out"_a, "out_stride"_a, "x"_a, "x_stride"_a, "y"_a, "y_stride"_a, "columns"_a, "rows"_a,
        "dim"_a, "factor"_a, "kind"_a, "level"_a);
}

}  // namespace quire
