// What every file of cases needs: inputs that are the same on every machine, hashes of results, and Case.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernel.h"
#include "thread_pool.h"

namespace quire {

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
  template <typename Integer>
  void add(const std::vector<Integer>& values) {
    add_bytes(values.data(), values.size() * sizeof(Integer));
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

// `values`, of which some must not be zero: arguments that make a kernel do nothing would agree at every level.
template <typename T>
const std::vector<T>& not_zero(const std::vector<T>& values) {
  for (T value : values)
    if (value != T{}) return values;
  std::fprintf(stderr, "a kernel wrote nothing\n");
  std::abort();
}

template <typename Args>
void run(Kernel<Args> kernel, const Args& args) {
  ThreadPool::instance().run([&](const Team& team) { kernel(args, team); });
}

struct Case {
  std::string name;
  std::function<void(Level, Hash&)> run;  // the same inputs in every call
};

// One per file of cases.
void add_basic_cases(std::vector<Case>& all);
void add_linear_cases(std::vector<Case>& all);
void add_moe_cases(std::vector<Case>& all);
void add_attention_cases(std::vector<Case>& all);
void add_sampling_cases(std::vector<Case>& all);

}  // namespace quire
