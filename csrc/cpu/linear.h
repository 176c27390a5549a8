// linear: out[m] = f(weight * x[m] (+ bias)), or f(gate) * up of it, for float32 rows and packed weights of every kind.
#pragma once

#include "dtype.h"
#include "kernel.h"
#include "weight_format.h"

namespace quire {

// f of a product, element by element; see quire/ops/activations.py, which has the same order.
enum class Activation : int { none = 0, silu = 1, gelu = 2, gelu_tanh = 3, relu = 4, quick_gelu = 5 };

// Largest output of each row, ties to the lowest index. With `ids` set nothing else is written: `out`, `bias` and `activation`
// are unused, and the weight is no gate/up pair.
struct Argmax {
  int64_t* ids;             // [rows]
  float* values;            // [rows]; not finite if any output of the row is not: then `ids` means nothing
};

// Rows whose activations one panel meets before the next panel is read; a multiple of every tile height.
constexpr int64_t kRowBlock = 96;

// float32 and float16 weights.
struct LinearArgs {
  float* out;               // [rows, out_stride]
  const float* x;           // [rows, x_stride]
  const float* bias;        // [N] in the order of the matrix, or null
  int64_t rows, out_stride, x_stride;
  WeightView weight;
  Activation activation;    // of the outputs, or of the gate
  Argmax argmax;
};
QUIRE_KERNEL(linear, LinearArgs)

// table4 weights.
QUIRE_KERNEL(table_linear, LinearArgs)

// row_table4 weights.
QUIRE_KERNEL(row_table_linear, LinearArgs)

// bfloat16 weights and rows.
struct Bf16LinearArgs {
  float* out;
  const bf16* x;            // [rows, x_stride], zero beyond the inputs up to an even number
  const float* bias;
  int64_t rows, out_stride, x_stride;
  WeightView weight;
  Activation activation;
  Argmax argmax;
};
QUIRE_KERNEL(bf16_linear, Bf16LinearArgs)

// float8 weights, bfloat16 rows.
QUIRE_KERNEL(float8_linear, Bf16LinearArgs)

// Rows quantized by `quantize`, in steps: runs of inputs that are summed exactly, then scaled.
struct QuantizedRows {
  int8_t* values;           // [rows, stride], zero beyond the inputs
  float* scales;            // [rows, num_steps]
  int32_t* offsets;         // [rows, num_steps]: multiplier * sum of the step's values
  int64_t stride, num_steps, step;
};

// int8 and int4 weights.
struct QuantLinearArgs {
  float* out;
  const float* bias;
  int64_t rows, out_stride;
  QuantizedRows x;
  WeightView weight;
  Activation activation;
  Argmax argmax;
};
QUIRE_KERNEL(quant_linear, QuantLinearArgs)

// uint2 to uint8 and lookup4 weights; the rows' multiplier is 1, and their steps divide the weight's groups.
QUIRE_KERNEL(grouped_linear, QuantLinearArgs)

// Makes row `count` the first one.
static inline void skip_rows(LinearArgs& args, int64_t count) {
  args.out += count * args.out_stride;
  args.x += count * args.x_stride;
}

static inline void skip_rows(Bf16LinearArgs& args, int64_t count) {
  args.out += count * args.out_stride;
  args.x += count * args.x_stride;
}

static inline void skip_rows(QuantLinearArgs& args, int64_t count) {
  args.out += count * args.out_stride;
  args.x.values += count * args.x.stride;
  args.x.scales += count * args.x.num_steps;
  args.x.offsets += count * args.x.num_steps;
}

}  // namespace quire
