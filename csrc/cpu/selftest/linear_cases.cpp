// Cases of packed weights: packing, gathering rows, quantizing activations, multiplying; rows alone and in a batch.
#include "head_linear.h"
#include "linear.h"
#include "pack.h"
#include "quantize.h"
#include "selftest.h"

#include <sys/mman.h>
#include <unistd.h>

#include <iterator>

namespace quire {
namespace {

// A copy of some numbers that ends where readable memory does: a kernel that reads on ends the process.
class Guarded {
 public:
  template <typename T>
  explicit Guarded(const std::vector<T>& numbers) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), num_bytes = numbers.size() * sizeof(T);
    const size_t readable = (num_bytes + page - 1) / page * page;
    size_ = readable + page;
    memory_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED || mprotect(memory_ + readable, page, PROT_NONE) != 0) std::abort();
    data_ = memory_ + readable - num_bytes;
    std::memcpy(data_, numbers.data(), num_bytes);
  }
  ~Guarded() { munmap(memory_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <typename T>
  T* as() const { return reinterpret_cast<T*>(data_); }

 private:
  char* memory_;
  char* data_;
  size_t size_;
};

struct LinearShape {
  WeightKind kind;
  int64_t num_rows, num_inputs;   // N, K
  int64_t group;                  // inputs per weight scale, where there are groups; float8: 0 for all of a row
  int64_t activation_group;       // 0: all of a row
  bool gate_up;
  int64_t rows = 14;              // M; more than one tile of every height
  bool zeros = false;             // int4, and grouped kinds but lookup4: with zero points
  bool argmax = false;            // each row's largest output in place of the outputs
  Activation activation = Activation::none;
  bool minima = false;            // grouped kinds but lookup4: with minima
  bool two_levels = false;        // grouped kinds: with factors
};

// A matrix packed at one level, and what that wrote.
struct Packed {
  std::vector<uint8_t> data, scales, zeros, minima, scale_factors, minimum_factors;
  std::vector<float> table;
  std::vector<int32_t> outlier_starts, outlier_columns;
  std::vector<float> outlier_values;
  WeightView view;
};

// Arbitrary float16 numbers below 2 in magnitude, or int8.
std::vector<uint8_t> numbers_at(int64_t count, bool is_half, Random& random) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count) * (is_half ? 2 : 1));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
  for (size_t i = 1; is_half && i < bytes.size(); i += 2) bytes[i] &= 0xbf;
  return bytes;
}

// Grouped kinds: arbitrary codes and numbers.
Packed pack_codes_at(const LinearShape& shape, Level level, Random& random) {
  const int64_t lanes = num_panels(shape.num_rows) * kPanelRows, groups = shape.num_inputs / shape.group;
  Packed packed;
  packed.data.resize(static_cast<size_t>(lanes * words_per_row(shape.kind, shape.num_inputs) * 4));
  packed.scales = numbers_at(lanes * groups, !shape.two_levels, random);
  const bool nibbles = shape.minima && shape.two_levels && shape.kind == WeightKind::uint2;   // in the bytes of the scales
  if (shape.minima && !nibbles) packed.minima = numbers_at(lanes * groups, !shape.two_levels, random);
  if (shape.zeros) packed.zeros = numbers_at(lanes * groups, false, random);
  if (shape.kind == WeightKind::lookup4)
    for (int i = 0; i < 16; ++i) packed.table.push_back(static_cast<float>(static_cast<int8_t>(random.next())));
  if (shape.two_levels) {
    const int64_t factors = lanes * (shape.num_inputs / kFactorGroup);
    packed.scale_factors = numbers_at(factors, true, random);
    if (shape.minima) packed.minimum_factors = numbers_at(factors, true, random);
  }
  std::vector<uint8_t> values(static_cast<size_t>(shape.num_rows * shape.num_inputs));
  for (uint8_t& value : values) value = static_cast<uint8_t>(random.next() & ((1u << bits_of(shape.kind)) - 1));
  const auto at = [](const std::vector<uint8_t>& bytes) { return bytes.empty() ? nullptr : bytes.data(); };
  packed.view = {packed.data.data(), nullptr, at(packed.zeros), shape.num_rows, shape.num_inputs, shape.group, shape.gate_up, shape.kind,
                 {at(packed.scales), at(packed.minima), at(packed.scale_factors), at(packed.minimum_factors)},
                 packed.table.empty() ? nullptr : packed.table.data()};
  PackArgs args{};
  args.values = values.data();
  args.num_given = args.rows = shape.num_rows;
  args.row_stride = args.num_inputs = shape.num_inputs;
  args.data = packed.data.data();
  args.group = shape.group;
  args.gate_up = shape.gate_up;
  args.kind = shape.kind;
  run(pack_for(level), args);
  return packed;
}

bool is_table(WeightKind kind) { return kind == WeightKind::table4 || kind == WeightKind::row_table4; }

// Every eighth number or so, in two rows of three.
void add_outliers(Packed& packed, Random& random) {
  packed.outlier_starts.push_back(0);
  for (int64_t row = 0; row < packed.view.num_rows; ++row) {
    for (int64_t column = 0; row % 3 && column < packed.view.num_inputs; ++column)
      if (random.next() % 8 == 0) packed.outlier_columns.push_back(static_cast<int32_t>(column));
    packed.outlier_starts.push_back(static_cast<int32_t>(packed.outlier_columns.size()));
  }
  packed.outlier_values = random.floats(packed.outlier_starts.back());
  packed.view.outliers = {packed.outlier_starts.data(), packed.outlier_columns.data(), packed.outlier_values.data()};
}

Packed pack_at(const LinearShape& shape, Level level, Random& random) {
  if (is_grouped(shape.kind)) return pack_codes_at(shape, level, random);
  const std::vector<float> matrix = random.floats(shape.num_rows * shape.num_inputs);
  const int64_t panels = num_panels(shape.num_rows);
  Packed packed;
  packed.data.resize(static_cast<size_t>(panels * kPanelRows * words_per_row(shape.kind, shape.num_inputs) * 4));
  const int64_t groups = shape.group ? divide_up(shape.num_inputs, shape.group) : 1;
  packed.scales.resize(static_cast<size_t>(panels * kPanelRows * groups * 4));
  if (shape.zeros) packed.zeros.resize(static_cast<size_t>(panels * kPanelRows * groups));
  for (uint8_t& zero : packed.zeros) zero = static_cast<uint8_t>(random.next() % 16);
  packed.view = {packed.data.data(), packed.scales.data(), shape.zeros ? packed.zeros.data() : nullptr, shape.num_rows,
                 shape.num_inputs, shape.group, shape.gate_up, shape.kind, {}, nullptr};
  std::vector<uint8_t> codes;
  PackArgs args{};
  if (is_table(shape.kind)) {  // codes, scales and their numbers are the caller's
    for (int64_t i = 0; i < shape.num_rows * shape.num_inputs; ++i) codes.push_back(static_cast<uint8_t>(random.next() % 16));
    const std::vector<float> scales = random.floats(panels * kPanelRows * groups);
    std::memcpy(packed.scales.data(), scales.data(), packed.scales.size());
    packed.table = random.floats(shape.kind == WeightKind::table4 ? 16 : panels * kPanelRows * 16);
    packed.view.table = packed.table.data();
    if (shape.kind == WeightKind::row_table4) add_outliers(packed, random);
    args.values = codes.data();
  } else {
    args.floats = matrix.data();
  }
  args.dtype = DType::float32;
  args.num_given = shape.num_rows;
  args.row_stride = shape.num_inputs;
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

Quantized quantize_at(const LinearShape& shape, const float* x, int64_t rows, Level level) {
  const int64_t whole = divide_up(shape.num_inputs, 4) * 4;
  int64_t step = whole;
  if (shape.activation_group && shape.activation_group < step) step = shape.activation_group;
  if (shape.group && shape.group < step) step = shape.group;
  const int64_t stride = divide_up(shape.num_inputs, 64) * 64, num_steps = divide_up(shape.num_inputs, step);
  Quantized q;
  q.values.resize(static_cast<size_t>(rows * stride), 0x55);  // what no level writes must not matter
  q.scales.resize(static_cast<size_t>(rows * num_steps));
  q.offsets.resize(static_cast<size_t>(rows * num_steps));
  q.view = {reinterpret_cast<int8_t*>(q.values.data()), q.scales.data(), q.offsets.data(), stride, num_steps, step};
  QuantizeArgs args{};
  args.x = x;
  args.rows = rows;
  args.x_stride = args.dim = shape.num_inputs;
  args.activation_group = shape.activation_group ? shape.activation_group : shape.num_inputs;
  args.multiplier = shape.kind == WeightKind::int8 ? -128 : shape.zeros || is_grouped(shape.kind) ? 1 : -8;
  args.half_scales = is_grouped(shape.kind);
  args.out = q.view;
  run(quantize_for(level), args);
  return q;
}

// Rows rounded to bfloat16, [rows, an even number].
std::vector<uint16_t> narrow_at(const LinearShape& shape, const float* x, int64_t rows, Level level) {
  const int64_t stride = divide_up(shape.num_inputs, 2) * 2;
  std::vector<uint16_t> narrow(static_cast<size_t>(rows * stride));
  QuantizeArgs args{};
  args.x = x;
  args.rows = rows;
  args.x_stride = args.dim = shape.num_inputs;
  args.narrow_out = reinterpret_cast<bf16*>(narrow.data());
  args.narrow_stride = stride;
  run(quantize_for(level), args);
  return narrow;
}

// Outputs of rows, or their argmax.
struct Outputs {
  int64_t width;
  std::vector<float> values;   // [rows, width]
  std::vector<int64_t> ids;    // [rows], with width 1

  void require_rows(const Outputs& other, int64_t first, int64_t rows) const {
    const size_t begin = static_cast<size_t>(first * width), count = static_cast<size_t>(rows * width);
    const bool same = std::memcmp(other.values.data(), values.data() + begin, count * sizeof(float)) == 0 &&
                      (ids.empty() || std::memcmp(other.ids.data(), ids.data() + first, rows * sizeof(int64_t)) == 0);
    if (same) return;
    std::fprintf(stderr, "rows %d to %d alone have other bits than in the batch\n", static_cast<int>(first),
                 static_cast<int>(first + rows));
    std::abort();
  }
};

template <typename Args>
void multiply(Kernel<Args> kernel, Args args, const LinearShape& shape, const WeightView& weight, int64_t rows,
              const float* bias, Outputs& out) {
  args.rows = rows;
  args.weight = weight;
  args.activation = shape.activation;
  if (shape.argmax) {
    args.argmax = {out.ids.data(), out.values.data()};
  } else {
    args.out = out.values.data();
    args.out_stride = out.width;
    args.bias = bias;
  }
  run(kernel, args);
}

// Whether rows stay as they are, or are rounded to bfloat16.
bool meets_float32(WeightKind kind) {
  return kind == WeightKind::float32 || kind == WeightKind::float16 || is_table(kind);
}
bool meets_bfloat16(WeightKind kind) { return kind == WeightKind::bfloat16 || kind == WeightKind::float8; }

// Rounds rows as the weight wants them, and multiplies.
Outputs multiply_at(const LinearShape& shape, const Packed& packed, const float* x, int64_t rows, const float* bias,
                    Level level) {
  const Guarded data(packed.data);
  WeightView weight = packed.view;
  weight.data = data.as<void>();
  Outputs out;
  out.width = shape.argmax ? 1 : shape.gate_up ? shape.num_rows / 2 : shape.num_rows;
  out.values.resize(static_cast<size_t>(rows * out.width));
  if (shape.argmax) out.ids.resize(static_cast<size_t>(rows));
  if (meets_float32(shape.kind)) {
    LinearArgs args{};
    args.x = x;
    args.x_stride = shape.num_inputs;
    const auto kernel = shape.kind == WeightKind::table4 ? table_linear_for(level)
                        : shape.kind == WeightKind::row_table4 ? row_table_linear_for(level) : linear_for(level);
    multiply(kernel, args, shape, weight, rows, bias, out);
  } else if (meets_bfloat16(shape.kind)) {
    const std::vector<uint16_t> narrow = narrow_at(shape, x, rows, level);
    Bf16LinearArgs args{};
    const Guarded guarded(narrow);
    args.x = guarded.as<bf16>();
    args.x_stride = divide_up(shape.num_inputs, 2) * 2;
    const auto kernel = shape.kind == WeightKind::float8 ? float8_linear_for(level) : bf16_linear_for(level);
    multiply(kernel, args, shape, weight, rows, bias, out);
  } else {
    const Quantized q = quantize_at(shape, x, rows, level);
    const Guarded values(q.values);
    QuantLinearArgs args{};
    args.x = q.view;
    args.x.values = values.as<int8_t>();
    multiply((is_grouped(shape.kind) ? grouped_linear_for : quant_linear_for)(level), args, shape, weight, rows, bias, out);
  }
  return out;
}

// Levels whose bfloat16 products are summed in an order of their own.
bool has_tiles(Level level) { return level == Level::avx512_amx; }

void run_linear(const LinearShape& shape, Level level, Hash& hash) {
  Random random(3);
  const Packed packed = pack_at(shape, level, random);
  hash.add(packed.data);
  hash.add(packed.scales);
  hash.add(gather_at(packed.view, level));
  const std::vector<float> x = random.floats(shape.rows * shape.num_inputs), bias = random.floats(shape.num_rows);
  if (meets_bfloat16(shape.kind)) {
    hash.add(narrow_at(shape, x.data(), shape.rows, level));
    if (shape.kind == WeightKind::bfloat16 && has_tiles(level)) level = Level::avx512_bf16;  // tiles add up in another order: see run_bf16_tiles
  } else if (!meets_float32(shape.kind)) {
    const Quantized q = quantize_at(shape, x.data(), shape.rows, level);
    hash.add(q.values);
    hash.add(q.scales);
  }
  const auto rows_at = [&](int64_t first, int64_t rows) {
    return multiply_at(shape, packed, x.data() + first * shape.num_inputs, rows, bias.data(), level);
  };
  const Outputs all = rows_at(0, shape.rows);
  hash.add(not_zero(all.values));
  hash.add(all.ids);
  for (int64_t row : {int64_t{0}, shape.rows / 2, shape.rows - 1}) all.require_rows(rows_at(row, 1), row, 1);
  const int64_t first = shape.rows / 3;
  all.require_rows(rows_at(first, shape.rows - first), first, shape.rows - first);
}

// ---------------------------------------------------------------- bfloat16 tiles

float widened(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// bf16_linear by the definition of tdpbf16ps, one output at a time: of every 32 inputs the even ones are one chain of
// multiply-adds and the odd ones another, and the sum of both joins the output.
Outputs multiply_by_tiles(const LinearShape& shape, const Packed& packed, const std::vector<uint16_t>& x, const float* bias) {
  const int64_t inputs = divide_up(shape.num_inputs, 2) * 2;
  const uint16_t* weights = reinterpret_cast<const uint16_t*>(packed.data.data());
  Outputs out{shape.num_rows, {}, {}};
  for (int64_t row = 0; row < shape.rows; ++row)
    for (int64_t n = 0; n < shape.num_rows; ++n) {
      float total = 0;
      for (int64_t begin = 0; begin < inputs; begin += 32) {
        float chains[2] = {0, 0};
        for (int64_t k = begin; k < begin + 32 && k < inputs; ++k) {
          const int64_t word = (n / kPanelRows * (inputs / 2) + k / 2) * kPanelRows + n % kPanelRows;
          chains[k % 2] = std::fma(widened(x[row * inputs + k]), widened(weights[2 * word + k % 2]), chains[k % 2]);
        }
        total += chains[0] + chains[1];
      }
      out.values.push_back(total + bias[n]);
    }
  if (!shape.argmax) return out;
  Outputs best{1, {}, {}};
  for (int64_t row = 0; row < shape.rows; ++row) {
    const float* values = out.values.data() + row * shape.num_rows;
    int64_t id = 0;
    for (int64_t n = 1; n < shape.num_rows; ++n)
      if (values[n] > values[id]) id = n;
    best.ids.push_back(id);
    best.values.push_back(values[id]);
  }
  return best;
}

// The kernel at levels with tiles, the definition at all others.
void run_bf16_tiles(const LinearShape& shape, Level level, Hash& hash) {
  Random random(4);
  const Packed packed = pack_at(shape, level, random);
  const std::vector<float> x = random.floats(shape.rows * shape.num_inputs);
  std::vector<float> bias = random.floats(shape.num_rows);
  if (shape.argmax) bias.assign(bias.size(), 0.0f);
  const Outputs all = has_tiles(level)
      ? multiply_at(shape, packed, x.data(), shape.rows, bias.data(), level)
      : multiply_by_tiles(shape, packed, narrow_at(shape, x.data(), shape.rows, level), bias.data());
  hash.add(not_zero(all.values));
  hash.add(all.ids);
  if (!has_tiles(level)) return;
  for (int64_t row = 0; row < shape.rows; row += 3)
    all.require_rows(multiply_at(shape, packed, x.data() + row * shape.num_inputs, 1, bias.data(), level), row, 1);
}

// ---------------------------------------------------------------- heads

struct HeadShape {
  WeightKind kind;
  int64_t num_heads, num_outputs, num_inputs, rows;
};

// A matrix for each head: the outputs of `linear` for that head's inputs, at every level.
void run_heads(const HeadShape& shape, Level level, Hash& hash) {
  Random random(7);
  const int64_t stride = num_panels(shape.num_outputs) * kPanelRows, inputs = shape.num_heads * shape.num_inputs;
  const LinearShape stack = {shape.kind, shape.num_heads * stride, shape.num_inputs, 0, 0, false, shape.rows};
  const Packed packed = pack_at(stack, level, random);
  const std::vector<float> x = random.floats(shape.rows * inputs);
  const Guarded data(packed.data);
  std::vector<float> out(static_cast<size_t>(shape.rows * shape.num_heads * shape.num_outputs));
  HeadLinearArgs args{};
  args.out = out.data();
  args.x = x.data();
  args.rows = shape.rows;
  args.out_stride = shape.num_heads * shape.num_outputs;
  args.x_stride = inputs;
  args.num_heads = shape.num_heads;
  args.num_outputs = shape.num_outputs;
  args.weight = packed.view;
  args.weight.data = data.as<void>();
  run(head_linear_for(level), args);
  hash.add(not_zero(out));
}

// ---------------------------------------------------------------- shapes

LinearShape draw_grouped(Random& random) {
  const auto below = [&](uint64_t bound) { return static_cast<int64_t>(random.next() % bound); };
  constexpr WeightKind kinds[] = {WeightKind::uint8, WeightKind::uint6, WeightKind::uint5,  WeightKind::uint4,
                                  WeightKind::uint3, WeightKind::uint2, WeightKind::lookup4};
  constexpr int64_t groups[] = {16, 32, 64, 128};
  LinearShape shape{};
  shape.kind = kinds[below(std::size(kinds))];
  const bool whole_runs = shape.kind == WeightKind::uint5 || shape.kind == WeightKind::lookup4;
  shape.group = groups[whole_runs ? 1 + below(3) : below(4)];
  shape.activation_group = below(3) ? 32 << below(3) : 0;
  shape.two_levels = below(2) || (shape.kind == WeightKind::uint3 && shape.group == 16);
  shape.minima = shape.kind != WeightKind::lookup4 && below(2);
  shape.zeros = shape.kind != WeightKind::lookup4 && !shape.minima && !shape.two_levels && below(2);
  shape.num_inputs = shape.two_levels ? 256 * (1 + below(2)) : shape.group * (1 + below(3));
  shape.rows = 1 + below(20);
  shape.num_rows = 1 + below(70);
  shape.argmax = below(4) == 0;
  shape.gate_up = !shape.argmax && below(2);
  if (shape.gate_up) shape.num_rows *= 2;
  return shape;
}

LinearShape draw_shape(Random& random) {
  const auto below = [&](uint64_t bound) { return static_cast<int64_t>(random.next() % bound); };
  constexpr int64_t groups[] = {32, 64, 128};
  LinearShape shape{};
  shape.kind = below(2) ? WeightKind::int8 : WeightKind::int4;
  shape.activation_group = below(4) ? groups[below(3)] : 0;
  shape.rows = 1 + below(70);
  shape.num_rows = 1 + below(100);
  shape.num_inputs = 1 + below(330);
  if (shape.kind == WeightKind::int4) {
    shape.group = groups[below(3)];
    shape.num_inputs = shape.group * (1 + below(3));
    shape.zeros = below(2);
  }
  shape.argmax = below(4) == 0;
  if (!shape.argmax && below(2)) {
    shape.gate_up = true;
    shape.num_rows *= 2;
  }
  return shape;
}

std::string name_of(const char* what, const LinearShape& shape) {
  const char* const kind_names[] = {"float32", "bfloat16", "int8",  "int4",  "uint8",
                                    "uint4",   "uint6",    "uint5", "float8", "table4", "float16", "row_table4",
                                    "uint3",   "uint2",    "lookup4"};
  char name[128];
  std::snprintf(name, sizeof name, "%s %s M=%d N=%d K=%d groups %d/%d%s%s%s%s%s", what, kind_names[static_cast<int>(shape.kind)],
                static_cast<int>(shape.rows), static_cast<int>(shape.num_rows), static_cast<int>(shape.num_inputs),
                static_cast<int>(shape.group), static_cast<int>(shape.activation_group), shape.gate_up ? " gate/up" : "",
                shape.zeros ? " zeros" : "", shape.argmax ? " argmax" : "", shape.minima ? " minima" : "",
                shape.two_levels ? " two levels" : "");
  return name;
}

}  // namespace

void add_linear_cases(std::vector<Case>& all) {
  std::vector<LinearShape> shapes = {
      {WeightKind::float32, 70, 37, 0, 0, false}, {WeightKind::float32, 64, 96, 0, 0, true},
      {WeightKind::bfloat16, 70, 37, 0, 0, false}, {WeightKind::bfloat16, 64, 96, 0, 0, true},
      {WeightKind::int8, 70, 37, 0, 0, false}, {WeightKind::int8, 70, 300, 0, 128, false},
      {WeightKind::int8, 64, 192, 0, 64, true}, {WeightKind::int4, 70, 128, 32, 32, false},
      {WeightKind::int4, 70, 256, 128, 0, false}, {WeightKind::int4, 64, 256, 64, 128, true},
      {WeightKind::int8, 40, 132, 0, 64, false, 131},  {WeightKind::float8, 70, 37, 0, 0, false},
      {WeightKind::float8, 70, 131, 128, 0, false, 100}, {WeightKind::float8, 64, 258, 32, 0, true, 3},
      {WeightKind::table4, 70, 192, 64, 0, false, 100},  {WeightKind::table4, 64, 128, 32, 0, true, 3},
      {WeightKind::float16, 70, 37, 0, 0, false, 100},   {WeightKind::float16, 64, 96, 0, 0, true, 3},
      {WeightKind::row_table4, 70, 288, 0, 0, false, 100}, {WeightKind::row_table4, 64, 224, 0, 0, true, 3},
      {WeightKind::row_table4, 9, 64, 0, 0, false, 5, false, true}};
  constexpr int num_drawn = 24, num_grouped = 56;
  Random random(5);
  for (int i = 0; i < num_drawn; ++i) shapes.push_back(draw_shape(random));
  for (int i = 0; i < num_grouped; ++i) shapes.push_back(draw_grouped(random));
  for (LinearShape& shape : shapes) shape.activation = shape.gate_up ? Activation::silu : Activation::gelu;
  for (const LinearShape& shape : shapes)
    all.push_back({name_of("linear", shape), [=](Level level, Hash& hash) { run_linear(shape, level, hash); }});
  for (const WeightKind kind : {WeightKind::float32, WeightKind::bfloat16, WeightKind::float16})
    for (const HeadShape& shape : {HeadShape{kind, 3, 70, 37, 14}, HeadShape{kind, 2, 32, 16, 1}, HeadShape{kind, 1, 9, 1, 130}})
      all.push_back({name_of("heads", {kind, shape.num_outputs, shape.num_inputs, 0, 0, false, shape.rows}),
                     [=](Level level, Hash& hash) { run_heads(shape, level, hash); }});
  LinearShape tiled{WeightKind::bfloat16, 0, 0, 0, 0, false};
  constexpr int64_t sizes[][3] = {{1, 70, 64}, {5, 33, 37}, {16, 32, 31}, {17, 70, 96}, {33, 9, 130}, {70, 40, 65}, {101, 3, 34}};
  for (const auto& [rows, num_rows, num_inputs] : sizes) {
    tiled.rows = rows;
    tiled.num_rows = num_rows;
    tiled.num_inputs = num_inputs;
    tiled.argmax = rows % 16 == 1;
    all.push_back({name_of("tiles", tiled), [=](Level level, Hash& hash) { run_bf16_tiles(tiled, level, hash); }});
  }
}

}  // namespace quire
