// Python's side of the kernels and instructions of a mixture of experts.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind.h"
#include "grouped.h"
#include "moe.h"

namespace quire {
namespace {

InstructionPtr make_route(uintptr_t ids, uintptr_t weights, uintptr_t logits, int64_t logits_stride, uintptr_t correction_bias,
                          int64_t rows, int64_t num_experts, int64_t top_k, int64_t num_groups, int64_t top_groups,
                          double scale, bool is_softmax, bool renormalized, bool counts_two, int level) {
  RouteArgs args{};
  args.ids = pointer<int32_t>(ids);
  args.weights = pointer<float>(weights);
  args.logits = pointer<const float>(logits);
  args.correction_bias = pointer<const float>(correction_bias);
  args.rows = rows;
  args.logits_stride = logits_stride;
  args.num_experts = num_experts;
  args.top_k = top_k;
  args.num_groups = num_groups;
  args.top_groups = top_groups;
  args.scale = static_cast<float>(scale);
  args.is_softmax = is_softmax;
  args.renormalized = renormalized;
  args.counts_two = counts_two;
  return make_instruction(route_for(checked_level(level)), args);
}

InstructionPtr make_combine(uintptr_t out, int64_t out_stride, uintptr_t answers, uintptr_t places, uintptr_t weights,
                            int64_t rows, int64_t dim, int64_t top_k, int level) {
  CombineArgs args{};
  args.out = pointer<float>(out);
  args.out_stride = out_stride;
  args.answers = pointer<const float>(answers);
  args.places = pointer<const int32_t>(places);
  args.weights = pointer<const float>(weights);
  args.rows = rows;
  args.dim = dim;
  args.top_k = top_k;
  return make_instruction(combine_for(checked_level(level)), args);
}

using PlainCopy = std::tuple<uintptr_t, int64_t, uintptr_t, int64_t>;

InstructionPtr make_dispatch(uintptr_t ids, uintptr_t places, uintptr_t starts, int64_t num_experts, int64_t rows, int64_t top_k,
                             const std::vector<PlainCopy>& plain) {
  std::vector<RowCopy> copies;
  for (const auto& [source, source_stride, target, num_bytes] : plain)
    copies.push_back({pointer<const char>(source), source_stride, pointer<char>(target), num_bytes});
  return std::make_shared<Dispatch>(pointer<const int32_t>(ids), pointer<int32_t>(places), pointer<int32_t>(starts), num_experts,
                                    rows, top_k, std::move(copies));
}

InstructionPtr make_grouped_product(std::vector<std::shared_ptr<Product>> products, uintptr_t starts) {
  return std::make_shared<GroupedProduct>(std::move(products), pointer<const int32_t>(starts));
}

InstructionPtr make_grouped_select(uintptr_t out, uintptr_t x, uintptr_t order, uintptr_t starts, int64_t num_experts,
                                   int64_t dim) {
  return std::make_shared<GroupedSelect>(pointer<float>(out), pointer<const float>(x), pointer<const int32_t>(order),
                                         pointer<const int32_t>(starts), num_experts, dim);
}

InstructionPtr make_repeated_rows(InstructionPtr inner, int64_t factor) {
  return std::make_shared<RepeatedRows>(std::move(inner), factor);
}

}  // namespace

void bind_moe(nb::module_& m) {
  m.def("route", &make_route, "ids"_a, "weights"_a, "logits"_a, "logits_stride"_a, "correction_bias"_a, "rows"_a,
        "num_experts"_a, "top_k"_a, "num_groups"_a, "top_groups"_a, "scale"_a, "is_softmax"_a, "renormalized"_a,
        "counts_two"_a, "level"_a);
  m.def("combine", &make_combine, "out"_a, "out_stride"_a, "answers"_a, "places"_a, "weights"_a, "rows"_a, "dim"_a, "top_k"_a,
        "level"_a);
  m.def("dispatch", &make_dispatch, "ids"_a, "places"_a, "starts"_a, "num_experts"_a, "rows"_a, "top_k"_a, "copies"_a,
        "Each copy is (source, bytes between its rows, target, bytes of a row).");
  m.def("grouped_product", &make_grouped_product, "products"_a, "starts"_a);
  m.def("grouped_select", &make_grouped_select, "out"_a, "x"_a, "order"_a, "starts"_a, "num_experts"_a, "dim"_a);
  m.def("repeated_rows", &make_repeated_rows, "inner"_a, "factor"_a);
}

}  // namespace quire
