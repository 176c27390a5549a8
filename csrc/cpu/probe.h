// The loops that measure what the machine can do at most: reading memory, and arithmetic in registers.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace quire {

enum class ProbeKind : int { read = 0, float32 = 1, int8 = 2, bfloat16 = 3 };

// Operands that the arithmetic loops load, in bytes; small numbers in every format.
constexpr int64_t kProbeOperandBytes = 1024;

// What each thread did in one run: bytes read, or operations (a multiply and an add are two). A cache line each.
struct alignas(64) ProbeCount {
  double work;
  double result;             // of the loop, so that no compiler can leave it out
};

// A run of memory to read, of which each thread reads a share.
struct ProbeSpan {
  const float* start;
  int64_t num_bytes;         // what does not divide by kProbeBlockBytes x streams x threads is left out
};
constexpr int64_t kProbeBlockBytes = 256;

struct ProbeArgs {
  ProbeKind kind;
  int threads;               // of the team; the others return at once
  int64_t repeats;           // passes over all spans, or turns of an arithmetic loop
  const float* operands;     // arithmetic
  const ProbeSpan* spans;    // read, one after the other
  int64_t num_spans;
  int64_t streams;           // read: places in its share that a thread reads from in turn
  ProbeCount* counts;        // [threads]; no work where a level lacks the arithmetic
};
QUIRE_KERNEL(probe, ProbeArgs)

}  // namespace quire
