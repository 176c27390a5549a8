// Cases of simd.h, the norms, activations and the roofline's probe.
#include "activation.h"
#include "dispatch.h"
#include "layer_norm.h"
#include "pointwise.h"
#include "probe.h"
#include "rms_norm.h"
#include "selftest.h"
#include "selftest/simd_case.h"

namespace quire {

QUIRE_DISPATCH(simd_case, SimdCaseArgs)

namespace {

// ---------------------------------------------------------------- simd.h

void run_simd(Level level, Hash& hash) {
  constexpr int64_t count = 512;
  const float special[] = {0.0f, -0.0f, 1.0f, -1.0f, 0.5f, 1.5f, 2.5f, -3.5f, 1e-45f, 1e-39f, 6e-8f, 3e-8f, 65504.0f, 65519.9f,
                           65520.0f, -70000.0f, 3.4e38f, -3.4e38f, 88.0f, 89.0f, -87.4f, -87.2f, -200.0f, 1.00390625f,
                           1.01171875f, HUGE_VALF, -HUGE_VALF, __builtin_nanf("")};
  Random random(1);
  std::vector<float> operands[3];
  for (std::vector<float>& operand : operands) {
    operand = random.floats(count * 16);
    for (float& x : operand) {
      if (random.next() % 4 == 0) x = special[random.next() % std::size(special)];
      else if (random.next() % 4 == 0) x *= std::ldexp(1.0f, static_cast<int>(random.next() % 60) - 30);
    }
  }
  std::vector<float> floats(count * kSimdCaseFloats * 16);
  std::vector<uint8_t> bf16s(count * 32), f16s(count * 32);
  SimdCaseArgs args{operands[0].data(), operands[1].data(), operands[2].data(), floats.data(),
                        reinterpret_cast<bf16*>(bf16s.data()), reinterpret_cast<f16*>(f16s.data()), count};
  run(simd_case_for(level), args);
  hash.add(floats);
  hash.add(bf16s);
}

// ---------------------------------------------------------------- norms and activations

constexpr int64_t element_size(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// Random numbers in [-8, 8] of any type: bit patterns with a bounded exponent.
std::vector<uint8_t> random_matrix(Random& random, DType dtype, int64_t count) {
  std::vector<uint8_t> out(static_cast<size_t>(count * element_size(dtype)));
  for (int64_t i = 0; i < count; ++i) {
    const float x = random.number();
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint16_t half = static_cast<uint16_t>(random.next() % 2 << 15 | (0x3000 + random.next() % 0x1800));
    const uint16_t top = static_cast<uint16_t>(bits >> 16);
    if (dtype == DType::float32) std::memcpy(&out[static_cast<size_t>(i) * 4], &bits, 4);
    else std::memcpy(&out[static_cast<size_t>(i) * 2], dtype == DType::bfloat16 ? &top : &half, 2);
  }
  return out;
}

void run_rms_norm(DType dtype, int64_t dim, Level level, Hash& hash) {
  constexpr int64_t rows = 5;
  Random random(2);
  const std::vector<uint8_t> x = random_matrix(random, dtype, rows * dim), residual = random_matrix(random, dtype, rows * dim);
  const std::vector<uint8_t> weight = random_matrix(random, dtype, dim);
  std::vector<uint8_t> out(x.size()), sum(x.size());
  RmsNormArgs args{};
  args.out = out.data();
  args.residual_out = sum.data();
  args.x = x.data();
  args.weight = weight.data();
  args.residual = residual.data();
  args.rows = rows;
  args.heads = 1;
  args.dim = args.x_stride = dim;
  args.eps = 1e-6f;
  args.dtype = args.weight_dtype = dtype;
  run(rms_norm_for(level), args);
  hash.add(not_zero(out));
  hash.add(sum);
}

void run_layer_norm(DType dtype, int64_t dim, Level level, Hash& hash) {
  constexpr int64_t rows = 5, heads = 2;
  Random random(7);
  const std::vector<uint8_t> x = random_matrix(random, dtype, rows * heads * dim);
  const std::vector<uint8_t> weight = random_matrix(random, dtype, heads * dim), bias = random_matrix(random, dtype, heads * dim);
  std::vector<uint8_t> out(x.size());
  LayerNormArgs args{};
  args.out = out.data();
  args.x = x.data();
  args.weight = weight.data();
  args.bias = bias.data();
  args.rows = rows;
  args.heads = heads;
  args.dim = args.weight_stride = dim;
  args.x_stride = heads * dim;
  args.eps = 1e-5f;
  args.dtype = args.weight_dtype = dtype;
  run(layer_norm_for(level), args);
  hash.add(not_zero(out));
}

void run_pointwise(Pointwise kind, int64_t dim, Level level, Hash& hash) {
  constexpr int64_t rows = 5;
  Random random(8);
  const std::vector<float> x = random.floats(rows * (dim + 3)), y = random.floats(rows * dim);
  std::vector<int64_t> columns(static_cast<size_t>(dim));
  for (int64_t i = 0; i < dim; ++i) columns[static_cast<size_t>(i)] = dim - 1 - i;
  std::vector<float> out(static_cast<size_t>(rows * dim));
  PointwiseArgs args{};
  args.out = out.data();
  args.x = x.data();
  args.y = kind == Pointwise::add || kind == Pointwise::sigmoid_gate ? y.data() : nullptr;
  args.rows = rows;
  args.dim = args.out_stride = args.y_stride = dim;
  args.x_stride = dim + 3;
  args.columns = columns.data();
  args.factor = 2.5f;
  args.kind = kind;
  run(pointwise_for(level), args);
  hash.add(not_zero(out));
}

void run_silu_and_mul(DType dtype, int64_t dim, Level level, Hash& hash) {
  constexpr int64_t rows = 5;
  Random random(4);
  const std::vector<uint8_t> x = random_matrix(random, dtype, rows * 2 * dim);
  std::vector<uint8_t> out(x.size() / 2);
  SiluAndMulArgs args{};
  args.out = out.data();
  args.x = x.data();
  args.rows = rows;
  args.dim = dim;
  args.dtype = dtype;
  run(silu_and_mul_for(level), args);
  hash.add(not_zero(out));
}

// ---------------------------------------------------------------- the probe

// Its figures mean nothing here; that its instructions are legal does.
void run_probe(Level level, Hash& hash) {
  std::vector<float> memory(1 << 16, 1.0f);
  const ProbeSpan span{memory.data(), static_cast<int64_t>(memory.size()) * 4};
  ProbeCount counts[1];
  for (ProbeKind kind : {ProbeKind::read, ProbeKind::float32, ProbeKind::int8, ProbeKind::bfloat16})
    run(probe_for(level), ProbeArgs{kind, 1, 10, memory.data(), &span, 1, 4, counts});
  hash.add_bytes("probe", 5);
}

}  // namespace

void add_basic_cases(std::vector<Case>& all) {
  all.push_back({"simd", run_simd});
  all.push_back({"probe", run_probe});
  const char* const names[] = {"float32", "bfloat16", "float16"};
  for (DType dtype : {DType::float32, DType::bfloat16, DType::float16})
    for (int64_t dim : {1, 15, 77, 896}) {
      const std::string suffix = std::string(" ") + names[static_cast<int>(dtype)] + " " + std::to_string(dim);
      all.push_back({"rms_norm" + suffix, [=](Level level, Hash& hash) { run_rms_norm(dtype, dim, level, hash); }});
      all.push_back({"layer_norm" + suffix, [=](Level level, Hash& hash) { run_layer_norm(dtype, dim, level, hash); }});
      all.push_back({"silu_and_mul" + suffix, [=](Level level, Hash& hash) { run_silu_and_mul(dtype, dim, level, hash); }});
    }
  for (int64_t dim : {1, 77, 900})
    for (Pointwise kind :
         {Pointwise::add, Pointwise::multiply, Pointwise::soft_cap, Pointwise::select, Pointwise::sigmoid_gate})
      all.push_back({"pointwise " + std::to_string(static_cast<int>(kind)) + " " + std::to_string(dim),
                     [=](Level level, Hash& hash) { run_pointwise(kind, dim, level, hash); }});
}

}  // namespace quire
