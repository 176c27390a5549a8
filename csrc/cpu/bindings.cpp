// The Python module quire._cpu. Tensors arrive as addresses and sizes (torch is not linked), checked by
// quire/ops/cpu, which is the only caller. Every kernel releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "cpu_features.h"
#include "dispatch.h"

namespace nb = nanobind;
using namespace quire;

namespace {

nb::dict features_dict() {
  const CpuFeatures& f = cpu_features();
  nb::dict d;
  d["avx2"] = f.avx2;
  d["fma"] = f.fma;
  d["f16c"] = f.f16c;
  d["avx_vnni"] = f.avx_vnni;
  d["avx512f"] = f.avx512f;
  d["avx512bw"] = f.avx512bw;
  d["avx512vl"] = f.avx512vl;
  d["avx512dq"] = f.avx512dq;
  d["avx512_vnni"] = f.avx512_vnni;
  d["avx512_bf16"] = f.avx512_bf16;
  d["amx_tile"] = f.amx_tile;
  d["amx_int8"] = f.amx_int8;
  d["amx_bf16"] = f.amx_bf16;
  d["neon"] = f.neon;
  d["dotprod"] = f.dotprod;
  d["i8mm"] = f.i8mm;
  d["bf16"] = f.bf16;
  d["sve"] = f.sve;
  return d;
}

std::vector<std::string> level_names() {
  std::vector<std::string> names;
  for (int i = 0; i < kNumLevels; ++i)
    if (level_available(static_cast<Level>(i))) names.emplace_back(kLevelNames[i]);
  return names;
}

// Running a level that the processor lacks would be an illegal instruction, so every call checks.
Level checked_level(int level) {
  if (level < 0 || level >= kNumLevels || !level_available(static_cast<Level>(level)))
    throw nb::value_error("this instruction-set level is not available here");
  return static_cast<Level>(level);
}

template <typename T>
T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

void rms_norm(uintptr_t out, uintptr_t residual_out, uintptr_t x, uintptr_t weight, uintptr_t residual,
              int64_t rows, int64_t dim, double eps, int dtype, int weight_dtype, int level) {
  const RmsNormFn kernel = rms_norm_for(checked_level(level));
  RmsNormArgs args;
  args.out = pointer<void>(out);
  args.residual_out = pointer<void>(residual_out);
  args.x = pointer<const void>(x);
  args.weight = pointer<const void>(weight);
  args.residual = pointer<const void>(residual);
  args.rows = rows;
  args.dim = dim;
  args.eps = static_cast<float>(eps);
  args.dtype = static_cast<DType>(dtype);
  args.weight_dtype = static_cast<DType>(weight_dtype);
  nb::gil_scoped_release release;
  kernel(args);
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "Quire's C++ kernels for the CPU. Called through quire.ops, never directly.";
  m.attr("FLOAT32") = static_cast<int>(DType::float32);
  m.attr("BFLOAT16") = static_cast<int>(DType::bfloat16);
  m.attr("FLOAT16") = static_cast<int>(DType::float16);
  m.attr("LEVEL_NAMES") = nb::make_tuple(kLevelNames[0], kLevelNames[1], kLevelNames[2]);
  m.def("cpu_features", &features_dict, "What the processor and operating system support, by name.");
  m.def("levels", &level_names, "Instruction-set levels that can run here, lowest first.");
  m.def("rms_norm", &rms_norm, nb::arg("out"), nb::arg("residual_out"), nb::arg("x"), nb::arg("weight"),
        nb::arg("residual"), nb::arg("rows"), nb::arg("dim"), nb::arg("eps"), nb::arg("dtype"),
        nb::arg("weight_dtype"), nb::arg("level"));
}
