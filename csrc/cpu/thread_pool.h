// The one pool of threads that kernels run on: started once, woken once per program.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "team.h"

namespace quire {

// A counting barrier that can be used again at once. Waiting spins for a moment, then yields, then sleeps: other
// processes share these cores.
class Barrier {
 public:
  void arrive_and_wait(int num_threads);

 private:
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> round_{0};
};

// Waits until `word` differs from `seen`, spinning first.
void wait_while_equal(const std::atomic<uint32_t>& word, uint32_t seen);

class ThreadPool {
 public:
  static ThreadPool& instance();
  ~ThreadPool();

  // Threads of every later run, the calling thread among them; >= 1.
  void resize(int num_threads);
  int size() const { return size_; }

  // Calls work(team) on every thread and returns when all are done. The caller is thread 0; runs do not overlap.
  template <typename Work>
  void run(const Work& work) {
    run_erased([](const void* w, const Team& team) { (*static_cast<const Work*>(w))(team); }, &work);
  }

 private:
  friend struct Team;
  using ErasedWork = void (*)(const void*, const Team&);
  struct Scratch { void* memory = nullptr; size_t num_bytes = 0; };

  void run_erased(ErasedWork work, const void* argument);
  void worker(int thread, uint32_t seen);
  void stop();

  std::mutex running_;
  std::vector<std::thread> threads_;
  std::vector<Scratch> scratch_;
  int size_ = 0;
  bool stopping_ = false;
  ErasedWork work_ = nullptr;
  const void* argument_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) Barrier barrier_;
};

}  // namespace quire
