// Rows of a matrix that a step takes from elsewhere: an image's embedding in place of those of its placeholder tokens.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "instruction.h"

namespace quire {

// `count` rows from `rows` on, dense, which stand in place of the matrix's rows `first`, `first` + 1 and so on.
struct RowRun {
  int64_t first;
  const float* rows;
  int64_t count;
};

// The runs of the next step. Shared by the instruction and whoever fills it.
struct RowRuns {
  std::vector<RowRun> runs;
};

class ReplaceRows final : public Instruction {
 public:
  // Stride in floats.
  ReplaceRows(std::shared_ptr<RowRuns> source, float* out, int64_t stride, int64_t dim)
      : source_(std::move(source)), out_(out), stride_(stride), dim_(dim) {}
  void set_rows(int64_t rows) override {
    for (const RowRun& run : source_->runs)
      if (run.first < 0 || run.count < 0 || run.first + run.count > rows)
        throw std::invalid_argument("a run of rows must lie within the step");
  }
  void run(const Team& team) const override {
    for (const RowRun& run : source_->runs) {
      const Range share = team.share(run.count);
      for (int64_t i = share.begin; i < share.end; ++i)
        std::memcpy(out_ + (run.first + i) * stride_, run.rows + i * dim_, static_cast<size_t>(dim_) * sizeof(float));
    }
  }

 private:
  std::shared_ptr<RowRuns> source_;
  float* out_;
  int64_t stride_, dim_;
};

}  // namespace quire
