// A program that runs every kernel at every level that the processor has, on 1 to 3 threads, and compares the bits with those
// of plain C++ on one thread. Prints a line per kernel with a hash of what it wrote, the same on every machine.
//
// It needs no Python, so that it also runs under an emulator: see tests/isa. Build: cmake -DQUIRE_SELFTEST=ON.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "dispatch.h"
#include "pack.h"
#include "probe.h"
#include "quantize.h"
#include "rms_norm.h"
#include "sampling.h"
#include "selftest_simd.h"
#include "thread_pool.h"

namespace quire {

QUIRE_DISPATCH(selftest_simd, SelftestSimdArgs)

namespace {

// ---------------------------------------------------------------- inputs and hashes

// splitmix64 (Steele, Lea and Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // In [-4, 4), with 20 significant bits.
  float number() { return static_cast<float>(static_cast<int64_t>(next() >> 44) - (1 << 19)) / (1 << 17); }

  std::vector<float> floats(int64_t count) {
    std::vector<float> out(static_cast<size_t>(count));
    for (float& x : out) x = number();
    return out;
  }

 private:
  uint64_t state_;
};

// FNV-1a over bytes. A NaN counts as one value: processors differ in its sign and payload.
class Hash {
 public:
  void add_bytes(const void* data, size_t size) {
    const uint8_t* bytes = static_cast<const uint8_t*>(data);
    for (size_t i = 0; i < size; ++i) value_ = (value_ ^ bytes[i]) * 0x100000001b3u;
  }
  void add(const std::vector<float>& values) {
    for (float x : values) {
      const float canonical = std::isnan(x) ? __builtin_nanf("") : x;
      add_bytes(&canonical, sizeof canonical);
    }
  }
  void add(const std::vector<uint8_t>& values) { add_bytes(values.data(), values.size()); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

template <typename Args>
void run(Kernel<Args> kernel, const Args& args) {
  ThreadPool::instance().run([&](const Team& team) { kernel(args, team); });
}

struct Case {
  std::string name;
  std::function<void(Level, Hash&)> run;  // the same inputs in every call
};

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
  std::vector<float> floats(count * kSelftestFloats * 16);
  std::vector<uint8_t> bf16s(count * 32), f16s(count * 32);
  SelftestSimdArgs args{operands[0].data(), operands[1].data(), operands[2].data(), floats.data(),
                        reinterpret_cast<bf16*>(bf16s.data()), reinterpret_cast<f16*>(f16s.data()), count};
  run(selftest_simd_for(level), args);
  hash.add(floats);
  hash.add(bf16s);
}

// ---------------------------------------------------------------- norms

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
  hash.add(out);
  hash.add(sum);
}

// ---------------------------------------------------------------- linear layers

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
  Quantized q{std::vector<uint8_t>(static_cast<size_t>(rows * stride)), std::vector<float>(static_cast<size_t>(rows * num_steps)),
              std::vector<int32_t>(static_cast<size_t>(rows * num_steps)), {}};
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
  if (shape.kind == WeightKind::float32 || shape.kind == WeightKind::bfloat16) {
    LinearArgs args{};
    args.out = out.data();
    args.x = x.data();
    args.bias = bias.data();
    args.rows = rows;
    args.out_stride = width;
    args.x_stride = shape.num_inputs;
    args.weight = packed.view;
    run(linear_for(level), args);
  } else {
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

// ---------------------------------------------------------------- the sampler

void run_sampler(int64_t vocab, bool ties, Level level, Hash& hash) {
  constexpr int64_t rows = 6, num_top = 7;
  const double temperature[rows] = {1.0, 0.7, 1.3, 1.0, 0.5, 1.0}, min_p[rows] = {0, 0, 0.05, 0, 0.01, 0};
  const double top_p[rows] = {1.0, 1.0, 1.0, 0.9, 0.95, 0.3};
  const int64_t top_k[rows] = {0, 5, 0, 0, 200, 2000}, chosen[rows] = {0, vocab - 1, vocab / 2, vocab / 3, 0, vocab / 5};
  Random random(4);
  std::vector<float> logits = random.floats(rows * vocab);
  for (float& x : logits) x = random.next() % 8 == 0 ? -HUGE_VALF : ties ? std::floor(4 * x) / 4 : x;
  for (int64_t row = 0; row < rows; ++row) logits[static_cast<size_t>(row * vocab)] = 1.0f;
  int64_t seeds[rows], positions[rows];
  for (int64_t& seed : seeds) seed = static_cast<int64_t>(random.next());
  for (int64_t& position : positions) position = static_cast<int64_t>(random.next() % 100000);
  const LogitRows input = {logits.data(), nullptr, vocab};
  const int64_t num_parts = (vocab + kArgmaxPart - 1) / kArgmaxPart;
  std::vector<int64_t> ids(static_cast<size_t>(rows * (num_parts + num_top + 3)));
  std::vector<float> best(static_cast<size_t>(rows * (num_parts + 1))), processed(static_cast<size_t>(rows * vocab));
  double log_sums[rows];
  int64_t* const parts = ids.data() + (num_top + 3) * rows;
  run(argmax_for(level), ArgmaxArgs{ids.data(), best.data(), parts, best.data() + rows, input, rows});
  hash.add(best);
  run(sample_for(level), SampleArgs{ids.data() + rows, best.data(), processed.data(), input, temperature, min_p, top_k, top_p,
                                    seeds, positions, rows});
  hash.add(processed);
  run(rank_tokens_for(level),
      RankArgs{ids.data() + 3 * rows, ids.data() + 2 * rows, log_sums, input, chosen, num_top, rows});
  hash.add_bytes(log_sums, sizeof log_sums);
  hash.add_bytes(ids.data(), ids.size() * sizeof(int64_t));
}

// ---------------------------------------------------------------- the probe

// Its figures mean nothing here; that its instructions are legal does.
void run_probe(Level level, Hash& hash) {
  std::vector<float> memory(1 << 16, 1.0f);
  ProbeCount counts[1];
  for (ProbeKind kind : {ProbeKind::read, ProbeKind::float32, ProbeKind::int8, ProbeKind::bfloat16})
    run(probe_for(level), ProbeArgs{kind, 1, 10, memory.data(), static_cast<int64_t>(memory.size()) * 4, 4, counts});
  hash.add_bytes("probe", 5);
}

// ---------------------------------------------------------------- all of them

std::vector<Case> cases() {
  std::vector<Case> all = {{"simd", run_simd}, {"probe", run_probe}};
  const DType dtypes[] = {DType::float32, DType::bfloat16, DType::float16};
  const char* const dtype_names[] = {"float32", "bfloat16", "float16"};
  for (DType dtype : dtypes)
    for (int64_t dim : {1, 15, 77, 896})
      all.push_back({std::string("rms_norm ") + dtype_names[static_cast<int>(dtype)] + " " + std::to_string(dim),
                     [=](Level level, Hash& hash) { run_rms_norm(dtype, dim, level, hash); }});
  const char* const kind_names[] = {"float32", "bfloat16", "int8", "int4"};
  const LinearShape shapes[] = {
      {WeightKind::float32, 70, 37, 0, 0, false}, {WeightKind::float32, 64, 96, 0, 0, true},
      {WeightKind::bfloat16, 70, 37, 0, 0, false}, {WeightKind::bfloat16, 64, 96, 0, 0, true},
      {WeightKind::int8, 70, 37, 0, 0, false}, {WeightKind::int8, 70, 300, 0, 128, false},
      {WeightKind::int8, 64, 192, 0, 64, true}, {WeightKind::int4, 70, 128, 32, 32, false},
      {WeightKind::int4, 70, 256, 128, 0, false}, {WeightKind::int4, 64, 256, 64, 128, true}};
  for (const LinearShape& shape : shapes)
    all.push_back({std::string("linear ") + kind_names[static_cast<int>(shape.kind)] + " " + std::to_string(shape.num_rows) +
                       "x" + std::to_string(shape.num_inputs) + " " + std::to_string(shape.activation_group),
                   [=](Level level, Hash& hash) { run_linear(shape, level, hash); }});
  for (int64_t vocab : {1, 70, 5000, 20000})
    for (bool ties : {false, true})
      all.push_back({"sampler " + std::to_string(vocab) + (ties ? " ties" : ""),
                     [=](Level level, Hash& hash) { run_sampler(vocab, ties, level, hash); }});
  return all;
}

uint64_t hash_of(const Case& one, Level level, int num_threads) {
  ThreadPool::instance().resize(num_threads);
  Hash hash;
  one.run(level, hash);
  return hash.value();
}

// Prints the case's line; false if some level or thread count gave other bits.
bool check(const Case& one, const std::vector<Level>& levels) {
  const uint64_t expected = hash_of(one, Level::generic, 1);
  std::string wrong;
  for (Level level : levels)
    for (int num_threads = 1; num_threads <= 3; ++num_threads)
      if (hash_of(one, level, num_threads) != expected)
        wrong += std::string(" ") + kLevelNames[static_cast<int>(level)] + "/" + std::to_string(num_threads);
  std::printf("%016llx %s%s%s\n", static_cast<unsigned long long>(expected), one.name.c_str(),
              wrong.empty() ? "" : " DIFFERS AT", wrong.c_str());
  return wrong.empty();
}

int run_all() {
  std::vector<Level> levels;
  std::printf("levels:");
  for (int i = 0; i < kNumLevels; ++i) {
    if (!level_available(static_cast<Level>(i))) continue;
    levels.push_back(static_cast<Level>(i));
    std::printf(" %s", kLevelNames[i]);
  }
  std::printf("\n");
  bool ok = true;
  for (const Case& one : cases()) ok = check(one, levels) && ok;
  std::printf(ok ? "ok\n" : "FAILED\n");
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace quire

int main() { return quire::run_all(); }
