// The Python module quire._cpu. Tensors arrive as addresses and sizes (torch is not linked), checked by
// quire/ops/cpu, which is the only caller. Each kernel's function returns an Instruction; running one releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "bind.h"
#include "cpu_features.h"
#include "dtype.h"
#include "replace_rows.h"
#include "step_layout.h"

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

void set_layout(BatchLayout& layout, int64_t num_tokens, int64_t num_requests, int64_t max_blocks, uintptr_t token_ids,
                uintptr_t positions, uintptr_t slot_mapping, uintptr_t block_tables, uintptr_t query_start,
                uintptr_t seq_lens) {
  layout.num_tokens = num_tokens;
  layout.num_requests = num_requests;
  layout.max_blocks = max_blocks;
  layout.token_ids = pointer<const int64_t>(token_ids);
  layout.positions = pointer<const int64_t>(positions);
  layout.slot_mapping = pointer<const int64_t>(slot_mapping);
  layout.block_tables = pointer<const int32_t>(block_tables);
  layout.query_start = pointer<const int32_t>(query_start);
  layout.seq_lens = pointer<const int32_t>(seq_lens);
}

std::optional<std::vector<int64_t>> ids_if_finite(uintptr_t ids, uintptr_t values, int64_t count) {
  const float* value = pointer<const float>(values);
  for (int64_t i = 0; i < count; ++i)
    if (!std::isfinite(value[i])) return std::nullopt;
  return std::vector<int64_t>(pointer<const int64_t>(ids), pointer<const int64_t>(ids) + count);
}

}  // namespace

NB_MODULE(_cpu, m) {
  nb::set_leak_warnings(false);  // programs may live until the interpreter is gone
  m.doc() = "Quire's C++ kernels for the CPU. Called through quire.ops, never directly.";
  m.attr("FLOAT32") = static_cast<int>(DType::float32);
  m.attr("BFLOAT16") = static_cast<int>(DType::bfloat16);
  m.attr("FLOAT16") = static_cast<int>(DType::float16);
  nb::list names;
  for (const char* name : kLevelNames) names.append(name);
  m.attr("LEVEL_NAMES") = nb::tuple(names);
  m.def("cpu_features", &features_dict, "What the processor and operating system support, by name.");
  m.def("levels", &level_names, "Instruction-set levels that can run here, lowest first.");
  m.def("set_num_threads", [](int count) { ThreadPool::instance().resize(count); }, "count"_a,
        "Threads of every later kernel, the caller's among them.");
  m.def("num_threads", [] { return ThreadPool::instance().size(); });

  nb::class_<BatchLayout>(m, "BatchLayout")
      .def(nb::init<>())
      .def("set", &set_layout, "num_tokens"_a, "num_requests"_a, "max_blocks"_a, "token_ids"_a, "positions"_a,
           "slot_mapping"_a, "block_tables"_a, "query_start"_a, "seq_lens"_a);
  nb::class_<RequestTables>(m, "RequestTables")
      .def("__init__",
           [](RequestTables* self, uintptr_t tokens, int64_t tokens_stride, uintptr_t blocks, int64_t blocks_stride,
              int64_t block_size) {
             new (self) RequestTables{pointer<const int32_t>(tokens), tokens_stride, pointer<const int32_t>(blocks),
                                      blocks_stride, block_size};
           },
           "tokens"_a, "tokens_stride"_a, "blocks"_a, "blocks_stride"_a, "block_size"_a);
  nb::class_<StepLayout, BatchLayout>(m, "StepLayout")
      .def(nb::init<>())
      .def("fill", &StepLayout::fill, "tables"_a, "rows"_a, "first"_a, "counts"_a);
  nb::class_<Instruction>(m, "Instruction")
      .def("run", &Instruction::run_alone, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<Program>(m, "Program")
      .def(nb::init<Program::Instructions, const Program::Instructions&>(), "instructions"_a,
           "tail"_a = Program::Instructions())
      .def("run", &Program::run, "rows"_a, "tail_rows"_a = 0, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<PickRows, Instruction>(m, "PickRows")
      .def("__init__",
           [](PickRows* self, uintptr_t source, int64_t source_stride, uintptr_t out, int64_t out_stride, int64_t dim) {
             new (self) PickRows(pointer<const float>(source), source_stride, pointer<float>(out), out_stride, dim);
           },
           "source"_a, "source_stride"_a, "out"_a, "out_stride"_a, "dim"_a)
      .def("choose", &PickRows::choose, "rows"_a);
  nb::class_<RowRuns>(m, "RowRuns")
      .def(nb::init<>())
      .def("clear", [](RowRuns& self) { self.runs.clear(); })
      .def("add",
           [](RowRuns& self, int64_t first, uintptr_t rows, int64_t count) {
             self.runs.push_back({first, pointer<const float>(rows), count});
           },
           "first"_a, "rows"_a, "count"_a);
  m.def("replace_rows",
        [](std::shared_ptr<RowRuns> runs, uintptr_t out, int64_t stride, int64_t dim) -> InstructionPtr {
          return std::make_shared<ReplaceRows>(std::move(runs), pointer<float>(out), stride, dim);
        },
        "runs"_a, "out"_a, "stride"_a, "dim"_a);
  m.def("ids_if_finite", &ids_if_finite, "ids"_a, "values"_a, "count"_a,
        "The int64 numbers at `ids`, or None if one of the float32 numbers at `values` is not finite.");

  bind_attention(m);
  bind_linear(m);
  bind_moe(m);
  bind_norm(m);
  bind_sampling(m);
  bind_probe(m);
}
