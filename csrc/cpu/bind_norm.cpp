// Python's side of the norms.
#include "bind.h"
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

}  // namespace

void bind_norm(nb::module_& m) {
  m.def("rms_norm", &rms_norm, "out"_a, "residual_out"_a, "x"_a, "weight"_a, "residual"_a, "rows"_a, "heads"_a, "dim"_a,
        "x_stride"_a, "eps"_a, "dtype"_a, "weight_dtype"_a, "level"_a);
}

}  // namespace quire
