// The middle of a mixture of experts: rows sorted by expert, and each expert's product over its run of rows.
//
// The products are those of the linear kernels, every format and level of them: an expert's rows lie side by side, so that its
// product is a common one over a part of the rows. How many rows each expert has is known only when the program runs.
#pragma once

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "instruction.h"
#include "linear.h"

namespace quire {

// A linear kernel with its arguments. The kernel shares out `num_panels` x blocks of kRowBlock rows (tile.h: for_each_block).
class Product : public Instruction {
 public:
  // Computes rows [first, first + rows) of the arguments' rows, which set_rows does not bound.
  virtual void run_part(int64_t first, int64_t rows, const Team& team) const = 0;
  virtual int64_t panels() const = 0;
};

template <typename Args>
class ProductCall final : public Product {
 public:
  ProductCall(Kernel<Args> kernel, const Args& args) : kernel_(kernel), args_(args) {}
  void set_rows(int64_t rows) override { args_.rows = rows; }
  void run(const Team& team) const override { kernel_(args_, team); }
  void run_part(int64_t first, int64_t rows, const Team& team) const override {
    Args part = args_;
    skip_rows(part, first);
    part.rows = rows;
    kernel_(part, team);
  }
  int64_t panels() const override { return num_panels(args_.weight.num_rows); }

 private:
  Kernel<Args> kernel_;
  Args args_;
};

// One product per expert, over the rows from starts[expert] to starts[expert + 1].
//
// Threads share out units of one panel and one block of rows across all experts, weighed by what they cost: who computes a unit
// changes no bit. The weights of an expert without rows are not read.
class GroupedProduct final : public Instruction {
 public:
  GroupedProduct(std::vector<std::shared_ptr<Product>> products, const int32_t* starts)
      : products_(std::move(products)), starts_(starts) {}
  void set_rows(int64_t) override {}

  void run(const Team& team) const override {
    int64_t total = 0;
    for (size_t expert = 0; expert < products_.size(); ++expert) total += work_of(expert).total();
    const Range share = team.share(total);
    int64_t before = 0;
    for (size_t expert = 0; expert < products_.size(); ++expert) {
      const Work work = work_of(expert);
      const Range slice{work.units_before(share.begin - before), work.units_before(share.end - before)};
      before += work.total();
      if (slice.begin == slice.end) continue;
      Team part = team;
      part.slice = &slice;
      products_[expert]->run_part(starts_[expert], work.rows, part);
    }
  }

 private:
  // What bringing a panel from memory costs, in rows that it meets.
  static constexpr int64_t kPanelCost = 8;

  struct Work {
    int64_t rows, units, cost;   // `cost` of each unit
    int64_t total() const { return units * cost; }
    // Units that begin before a point of this work.
    int64_t units_before(int64_t point) const {
      if (point <= 0) return 0;
      const int64_t count = divide_up(point, cost);
      return count < units ? count : units;
    }
  };

  Work work_of(size_t expert) const {
    const int64_t rows = starts_[expert + 1] - starts_[expert];
    if (rows == 0) return {0, 0, 1};
    const int64_t blocks = divide_up(rows, kRowBlock);
    return {rows, products_[expert]->panels() * blocks, kPanelCost + divide_up(rows, blocks)};
  }

  std::vector<std::shared_ptr<Product>> products_;
  const int32_t* starts_;
};

// Rows of some bytes, `source_stride` bytes apart, and where they are copied to, side by side.
struct RowCopy {
  const char* source;
  int64_t source_stride;
  char* target;
  int64_t num_bytes;
};

// Gives each pair of a token and one of its experts a place: by expert, and within one by token and rank. Copies the token's row,
// in one or several encoded parts, to the places of its pairs.
class Dispatch final : public Instruction {
 public:
  // ids and places [rows, top_k], starts [num_experts + 1]. Ids are not checked.
  Dispatch(const int32_t* ids, int32_t* places, int32_t* starts, int64_t num_experts, int64_t rows, int64_t top_k,
           std::vector<RowCopy> copies)
      : ids_(ids), places_(places), starts_(starts), num_experts_(num_experts), rows_(rows), top_k_(top_k),
        copies_(std::move(copies)) {}
  void set_rows(int64_t rows) override { rows_ = rows; }

  void run(const Team& team) const override {
    if (team.thread == 0) sort();
    team.barrier();
    const Range share = team.share(rows_);
    for (int64_t row = share.begin; row < share.end; ++row)
      for (int64_t rank = 0; rank < top_k_; ++rank)
        for (const RowCopy& copy : copies_)
          std::memcpy(copy.target + places_[row * top_k_ + rank] * copy.num_bytes, copy.source + row * copy.source_stride,
                      static_cast<size_t>(copy.num_bytes));
  }

 private:
  void sort() const {
    const int64_t pairs = rows_ * top_k_;
    std::memset(starts_, 0, static_cast<size_t>(num_experts_ + 1) * sizeof(int32_t));
    for (int64_t pair = 0; pair < pairs; ++pair) ++starts_[ids_[pair] + 1];
    for (int64_t expert = 0; expert < num_experts_; ++expert) starts_[expert + 1] += starts_[expert];
    for (int64_t pair = 0; pair < pairs; ++pair) places_[pair] = starts_[ids_[pair]]++;
    // Each start has moved on to the next one's.
    for (int64_t expert = num_experts_; expert > 0; --expert) starts_[expert] = starts_[expert - 1];
    starts_[0] = 0;
  }

  const int32_t* ids_;
  int32_t* places_;
  int32_t* starts_;
  int64_t num_experts_, rows_, top_k_;
  std::vector<RowCopy> copies_;
};

// Rows sorted by expert, with their columns in the order that the expert's weight has them in: number i of a row of expert e is its
// number order[e][i].
class GroupedSelect final : public Instruction {
 public:
  // out and x [starts[num_experts], dim], order [num_experts, dim].
  GroupedSelect(float* out, const float* x, const int32_t* order, const int32_t* starts, int64_t num_experts, int64_t dim)
      : out_(out), x_(x), order_(order), starts_(starts), num_experts_(num_experts), dim_(dim) {}
  void set_rows(int64_t) override {}

  // A unit of work is a piece of one row, so that one row has work for every thread.
  void run(const Team& team) const override {
    const int64_t pieces = divide_up(dim_, kPiece);
    const Range share = team.share(starts_[num_experts_] * pieces);
    int64_t expert = 0;
    for (int64_t unit = share.begin; unit < share.end; ++unit) {
      const int64_t row = unit / pieces, first = unit % pieces * kPiece, rest = dim_ - first;
      while (starts_[expert + 1] <= row) ++expert;
      const int32_t* order = order_ + expert * dim_;
      for (int64_t i = first; i < first + (rest < kPiece ? rest : kPiece); ++i) out_[row * dim_ + i] = x_[row * dim_ + order[i]];
    }
  }

 private:
  static constexpr int64_t kPiece = 512;

  float* out_;
  const float* x_;
  const int32_t* order_;
  const int32_t* starts_;
  int64_t num_experts_, dim_;
};

// An instruction over `factor` rows for each of the program's.
class RepeatedRows final : public Instruction {
 public:
  RepeatedRows(std::shared_ptr<Instruction> inner, int64_t factor) : inner_(std::move(inner)), factor_(factor) {}
  void set_rows(int64_t rows) override { inner_->set_rows(rows * factor_); }
  void run(const Team& team) const override { inner_->run(team); }

 private:
  std::shared_ptr<Instruction> inner_;
  int64_t factor_;
};

}  // namespace quire
