// A kernel with its arguments, ready to run alone or as one step of a program.
#pragma once

#include <memory>
#include <vector>

#include "kernel.h"
#include "thread_pool.h"

namespace quire {

// What changes from step to step, for the kernels that need it: one batch of T tokens and R requests. Addresses of
// dense arrays; see quire.ops.paged_attention. A program's instructions share one.
struct BatchLayout {
  int64_t num_tokens = 0, num_requests = 0, max_blocks = 0;
  const int64_t* token_ids = nullptr;      // [T]
  const int64_t* positions = nullptr;      // [T]
  const int64_t* slot_mapping = nullptr;   // [T]
  const int32_t* block_tables = nullptr;   // [R, max_blocks]
  const int32_t* query_start = nullptr;    // [R + 1]
  const int32_t* seq_lens = nullptr;       // [R]
};

class Instruction {
 public:
  virtual ~Instruction() = default;
  // Rows that the next run works on: the tokens of a step.
  virtual void set_rows(int64_t rows) = 0;
  virtual void run(const Team& team) const = 0;

  void run_alone() const {
    ThreadPool::instance().run([this](const Team& team) { run(team); });
  }
};

// Args has a member `rows`.
template <typename Args>
class KernelCall final : public Instruction {
 public:
  KernelCall(Kernel<Args> kernel, const Args& args, std::shared_ptr<BatchLayout> layout = nullptr)
      : kernel_(kernel), args_(args), layout_(std::move(layout)) {}
  void set_rows(int64_t rows) override { args_.rows = rows; }
  void run(const Team& team) const override { kernel_(args_, team); }

 private:
  Kernel<Args> kernel_;
  Args args_;
  std::shared_ptr<BatchLayout> layout_;  // keeps what args_.layout points to
};

// A model's instructions, run with one wake-up of the pool and a barrier after each.
class Program {
 public:
  explicit Program(std::vector<std::shared_ptr<Instruction>> instructions) : instructions_(std::move(instructions)) {}

  void run(int64_t rows) {
    for (const auto& instruction : instructions_) instruction->set_rows(rows);
    ThreadPool::instance().run([this](const Team& team) {
      for (size_t i = 0; i < instructions_.size(); ++i) {
        if (i) team.barrier();
        instructions_[i]->run(team);
      }
    });
  }

 private:
  std::vector<std::shared_ptr<Instruction>> instructions_;
};

}  // namespace quire
