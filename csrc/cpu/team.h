// The threads that work through one kernel together, as that kernel sees them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire {

class ThreadPool;

struct Range { int64_t begin, end; };

// Thread number `thread` of `size`. Every thread of a team runs the same kernel and takes its own share.
struct Team {
  int thread;
  int size;
  ThreadPool* pool;
  const Range* slice = nullptr;   // this thread's share of what the kernel shares out, where the caller has cut it already

  // Returns when every thread of the team has come here.
  void barrier() const;

  // Memory of this thread alone, 64-byte aligned, kept from call to call; what it holds is undefined.
  void* scratch(size_t num_bytes) const;

  // What another thread's scratch() returned last; call it behind a barrier that follows that call.
  const void* scratch_of(int other) const;

  // This thread's contiguous share of `count` units of work. Depends on the team's size, never on timing.
  Range share(int64_t count) const {
    if (slice) return *slice;
    return {count * thread / size, count * (thread + 1) / size};
  }
};

}  // namespace quire
