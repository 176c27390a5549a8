// What every bind_<kernel>.cpp needs: addresses from Python, and a check that the level can run here.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>

#include "instruction.h"

namespace quire {

namespace nb = nanobind;
using namespace nb::literals;

template <typename T>
T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

// Running a level that the processor lacks would be an illegal instruction, so every call checks.
inline Level checked_level(int level) {
  if (level < 0 || level >= kNumLevels || !level_available(static_cast<Level>(level)))
    throw nb::value_error("this instruction-set level is not available here");
  return static_cast<Level>(level);
}

using InstructionPtr = std::shared_ptr<Instruction>;

template <typename Args>
InstructionPtr make_instruction(Kernel<Args> kernel, const Args& args, std::shared_ptr<BatchLayout> layout = nullptr) {
  return std::make_shared<KernelCall<Args>>(kernel, args, std::move(layout));
}

// One per file bind_<name>.cpp: adds that file's functions, each of which returns an Instruction.
void bind_attention(nb::module_& m);
void bind_linear(nb::module_& m);
void bind_moe(nb::module_& m);
void bind_norm(nb::module_& m);
void bind_sampling(nb::module_& m);
void bind_probe(nb::module_& m);

}  // namespace quire
