// A kernel with its arguments, ready to run alone or as one step of a program.
#pragma once

#include <memory>
#include <vector>

#include "batch_layout.h"
#include "kernel.h"
#include "thread_pool.h"

namespace quire {

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
