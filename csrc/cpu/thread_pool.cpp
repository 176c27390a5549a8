#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <cstdlib>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quire {
namespace {

// About 20 to 100 us of spinning, depending on what a pause costs on the processor.
constexpr int kSpins = 2000;
constexpr int kYields = 50;
constexpr size_t kAlignment = 64;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void wait_while_equal(const std::atomic<uint32_t>& word, uint32_t seen) {
  for (int i = 0; i < kSpins; ++i) {
    if (word.load(std::memory_order_acquire) != seen) return;
    pause_briefly();
  }
  for (int i = 0; i < kYields; ++i) {
    if (word.load(std::memory_order_acquire) != seen) return;
    sched_yield();
  }
  while (word.load(std::memory_order_acquire) == seen) word.wait(seen, std::memory_order_acquire);
}

void Barrier::arrive_and_wait(int num_threads) {
  if (num_threads == 1) return;
  const uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    round_.notify_all();
  } else {
    wait_while_equal(round_, round);
  }
}

void Team::barrier() const { pool->barrier_.arrive_and_wait(size); }

void* Team::scratch(size_t num_bytes) const {
  ThreadPool::Scratch& own = pool->scratch_[static_cast<size_t>(thread)];
  if (own.num_bytes < num_bytes) {
    std::free(own.memory);
    own.num_bytes = (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    own.memory = std::aligned_alloc(kAlignment, own.num_bytes);
    if (!own.memory) std::abort();
  }
  return own.memory;
}

const void* Team::scratch_of(int other) const { return pool->scratch_[static_cast<size_t>(other)].memory; }

namespace {
// After fork() the child has no worker threads: it must start its own pool.
ThreadPool* g_pool = nullptr;
void forget_pool() { g_pool = nullptr; }
}  // namespace

ThreadPool& ThreadPool::instance() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  (void)registered;
  if (!g_pool) {
    g_pool = new ThreadPool();  // never destroyed: kernels may run while the interpreter goes down
    g_pool->resize(1);
  }
  return *g_pool;
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  if (threads_.empty()) return;
  stopping_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  stopping_ = false;
}

void ThreadPool::resize(int num_threads) {
  std::lock_guard<std::mutex> lock(running_);
  if (num_threads == size_) return;
  stop();
  size_ = num_threads;
  for (size_t i = static_cast<size_t>(num_threads); i < scratch_.size(); ++i) std::free(scratch_[i].memory);
  scratch_.resize(static_cast<size_t>(num_threads));
  const uint32_t seen = generation_.load(std::memory_order_acquire);
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back(&ThreadPool::worker, this, i, seen);
}

void ThreadPool::worker(int thread, uint32_t seen) {
  for (;;) {
    wait_while_equal(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_) return;
    work_(argument_, Team{thread, size_, this});
    barrier_.arrive_and_wait(size_);
  }
}

void ThreadPool::run_erased(ErasedWork work, const void* argument) {
  std::lock_guard<std::mutex> lock(running_);
  const Team team{0, size_, this};
  if (size_ == 1) {
    work(argument, team);
    return;
  }
  work_ = work;
  argument_ = argument;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  work(argument, team);
  barrier_.arrive_and_wait(size_);
}

}  // namespace quire
