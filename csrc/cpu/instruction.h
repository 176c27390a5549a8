// A kernel with its arguments, ready to run alone or as one step of a program.
#pragma once

#include <cstring>
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

// Copies chosen rows of a matrix to the first rows of another: those of one program's result that the next one works on.
class PickRows final : public Instruction {
 public:
  // Strides in floats.
  PickRows(const float* source, int64_t source_stride, float* out, int64_t out_stride, int64_t dim)
      : source_(source), source_stride_(source_stride), out_(out), out_stride_(out_stride), dim_(dim) {}
  // The rows of every later run, which must have as many.
  void choose(std::vector<int64_t> rows) { chosen_ = std::move(rows); }
  void set_rows(int64_t rows) override { rows_ = rows; }
  void run(const Team& team) const override {
    const Range share = team.share(rows_);
    for (int64_t i = share.begin; i < share.end; ++i)
      std::memcpy(out_ + i * out_stride_, source_ + chosen_[static_cast<size_t>(i)] * source_stride_,
                  static_cast<size_t>(dim_) * sizeof(float));
  }

 private:
  const float* source_;
  int64_t source_stride_;
  float* out_;
  int64_t out_stride_, dim_, rows_ = 0;
  std::vector<int64_t> chosen_;
};

// A model's instructions, run with one wake-up of the pool and a barrier after each. Those of the tail, behind the others,
// have a number of rows of their own.
class Program {
 public:
  using Instructions = std::vector<std::shared_ptr<Instruction>>;

  Program(Instructions instructions, const Instructions& tail) : instructions_(std::move(instructions)) {
    tail_start_ = instructions_.size();
    instructions_.insert(instructions_.end(), tail.begin(), tail.end());
  }

  void run(int64_t rows, int64_t tail_rows) {
    for (size_t i = 0; i < instructions_.size(); ++i) instructions_[i]->set_rows(i < tail_start_ ? rows : tail_rows);
    ThreadPool::instance().run([this](const Team& team) {
      for (size_t i = 0; i < instructions_.size(); ++i) {
        if (i) team.barrier();
        instructions_[i]->run(team);
      }
    });
  }

 private:
  Instructions instructions_;
  size_t tail_start_;
};

}  // namespace quire
