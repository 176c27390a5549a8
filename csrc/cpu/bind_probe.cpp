// Python's side of the roofline probe: runs its loops on the pool, by the clock.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "bind.h"
#include "probe.h"

namespace quire {
namespace {

constexpr double kShortestRun = 5e-3;  // seconds: waking the pool costs microseconds

double run_once(Kernel<ProbeArgs> kernel, const ProbeArgs& args) {
  const auto start = std::chrono::steady_clock::now();
  ThreadPool::instance().run([&](const Team& team) { kernel(args, team); });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The shortest of three: one alone may be long because another process had the processor.
double shortest_of_three(Kernel<ProbeArgs> kernel, const ProbeArgs& args) {
  double shortest = run_once(kernel, args);
  for (int i = 0; i < 2; ++i) shortest = std::min(shortest, run_once(kernel, args));
  return shortest;
}

// Bytes or operations per second, one number per run; none where the level lacks the arithmetic.
std::vector<double> rates(ProbeArgs args, int num_runs, Level level) {
  if (args.threads < 1 || args.threads > ThreadPool::instance().size())
    throw nb::value_error("threads must be at least 1 and at most num_threads()");
  const Kernel<ProbeArgs> kernel = probe_for(level);
  std::vector<ProbeCount> counts(static_cast<size_t>(args.threads));
  args.counts = counts.data();
  // Doubling up to a measurable time also wakes the processor from a low clock.
  for (args.repeats = 1; shortest_of_three(kernel, args) < kShortestRun; args.repeats *= 2)
    if (counts[0].work == 0) return {};
  std::vector<double> found;
  for (int run = 0; run < num_runs; ++run) {
    const double seconds = run_once(kernel, args);
    double work = 0;
    for (const ProbeCount& count : counts) work += count.work;
    found.push_back(work / seconds);
  }
  return found;
}

std::vector<double> read_rates(const std::vector<ProbeSpan>& spans, int64_t streams, int threads, int num_runs,
                               int level) {
  if (streams < 1 || streams > 16) throw nb::value_error("streams must be from 1 to 16");
  ProbeArgs args{};
  args.kind = ProbeKind::read;
  args.threads = threads;
  args.spans = spans.data();
  args.num_spans = static_cast<int64_t>(spans.size());
  args.streams = streams;
  return rates(args, num_runs, checked_level(level));
}

// Memory of others: spans of (address, bytes) that they keep alive.
std::vector<double> read_spans(const std::vector<std::pair<uintptr_t, int64_t>>& spans, int64_t streams, int threads,
                               int num_runs, int level) {
  std::vector<ProbeSpan> found;
  for (const auto& [address, num_bytes] : spans) found.push_back({reinterpret_cast<const float*>(address), num_bytes});
  return read_rates(found, streams, threads, num_runs, level);
}

// Memory to read from: in huge pages where the system has them, each part touched first by the thread that will read it.
class ProbeMemory {
 public:
  explicit ProbeMemory(int64_t num_bytes) : num_bytes_((num_bytes + kPage - 1) / kPage * kPage) {
    memory_ = static_cast<float*>(std::aligned_alloc(kPage, static_cast<size_t>(num_bytes_)));
    if (!memory_) throw std::bad_alloc();
#if defined(__linux__)
    madvise(memory_, static_cast<size_t>(num_bytes_), MADV_HUGEPAGE);
#endif
    ThreadPool::instance().run([this](const Team& team) {
      const Range share = team.share(num_bytes_ / 4096);
      for (int64_t i = share.begin * 1024; i < share.end * 1024; ++i) memory_[i] = 1.0f;
    });
  }
  ~ProbeMemory() { std::free(memory_); }
  ProbeMemory(const ProbeMemory&) = delete;
  ProbeMemory& operator=(const ProbeMemory&) = delete;

  std::vector<double> read(int64_t num_bytes, int64_t streams, int threads, int num_runs, int level) const {
    if (num_bytes < 4096 * threads || num_bytes > num_bytes_) throw nb::value_error("num_bytes must fit the memory");
    return read_rates({{memory_, num_bytes}}, streams, threads, num_runs, level);
  }

 private:
  static constexpr int64_t kPage = 2 << 20;
  float* memory_;
  int64_t num_bytes_;
};

std::vector<double> arithmetic(int kind, int threads, int num_runs, int level) {
  if (kind < static_cast<int>(ProbeKind::float32) || kind > static_cast<int>(ProbeKind::bfloat16))
    throw nb::value_error("kind must be one of PROBE_FLOAT32, PROBE_INT8, PROBE_BFLOAT16");
  alignas(64) float operands[kProbeOperandBytes / 4];
  for (float& x : operands) x = 1.0f;
  ProbeArgs args{};
  args.kind = static_cast<ProbeKind>(kind);
  args.threads = threads;
  args.operands = operands;
  return rates(args, num_runs, checked_level(level));
}

}  // namespace

void bind_probe(nb::module_& m) {
  m.attr("PROBE_FLOAT32") = static_cast<int>(ProbeKind::float32);
  m.attr("PROBE_INT8") = static_cast<int>(ProbeKind::int8);
  m.attr("PROBE_BFLOAT16") = static_cast<int>(ProbeKind::bfloat16);
  nb::class_<ProbeMemory>(m, "ProbeMemory")
      .def(nb::init<int64_t>(), "num_bytes"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("read", &ProbeMemory::read, "num_bytes"_a, "streams"_a, "threads"_a, "num_runs"_a, "level"_a,
           nb::call_guard<nb::gil_scoped_release>());
  m.def("probe_read", &read_spans, "spans"_a, "streams"_a, "threads"_a, "num_runs"_a, "level"_a,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("probe_arithmetic", &arithmetic, "kind"_a, "threads"_a, "num_runs"_a, "level"_a,
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace quire
