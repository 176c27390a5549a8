// The layout of one step, made from the tables of all live requests: what runs before the first kernel of every step.
#pragma once

#include <cstring>
#include <stdexcept>
#include <vector>

#include "batch_layout.h"

namespace quire {

// Row r of each belongs to one live request: its tokens by position, and its blocks.
struct RequestTables {
  const int32_t* tokens;
  int64_t tokens_stride;
  const int32_t* blocks;
  int64_t blocks_stride;
  int64_t block_size;
};

// A BatchLayout that owns its arrays. They grow to the largest step and are used again.
class StepLayout final : public BatchLayout {
 public:
  // Request i computes counts[i] tokens from position first[i] on; its tokens and blocks are in row rows[i] of the tables.
  // Raises std::invalid_argument where the three differ in length.
  void fill(const RequestTables& tables, const std::vector<int64_t>& rows, const std::vector<int64_t>& first,
            const std::vector<int64_t>& counts) {
    if (rows.size() != first.size() || rows.size() != counts.size())
      throw std::invalid_argument("rows, first and counts must be of one length");
    const size_t num_rows = rows.size();
    int64_t total = 0, longest = 1;
    for (size_t i = 0; i < num_rows; ++i) {
      total += counts[i];
      if (first[i] + counts[i] > longest) longest = first[i] + counts[i];
    }
    resize(total, num_rows, (longest + tables.block_size - 1) / tables.block_size);
    int64_t token = 0;
    for (size_t i = 0; i < num_rows; ++i) {
      const int32_t* blocks = tables.blocks + rows[i] * tables.blocks_stride;
      const int32_t* tokens = tables.tokens + rows[i] * tables.tokens_stride;
      const int64_t end = first[i] + counts[i];
      starts_[i] = static_cast<int32_t>(token);
      lens_[i] = static_cast<int32_t>(end);
      std::memcpy(blocks_.data() + static_cast<int64_t>(i) * max_blocks, blocks,
                  static_cast<size_t>((end + tables.block_size - 1) / tables.block_size) * sizeof(int32_t));
      for (int64_t position = first[i]; position < end; ++position, ++token) {
        ids_[static_cast<size_t>(token)] = tokens[position];
        positions_[static_cast<size_t>(token)] = position;
        slots_[static_cast<size_t>(token)] =
            blocks[position / tables.block_size] * tables.block_size + position % tables.block_size;
      }
    }
    starts_[num_rows] = static_cast<int32_t>(token);
    point_at_own();
  }

 private:
  void resize(int64_t total, size_t num_rows, int64_t blocks_per_row) {
    num_tokens = total;
    num_requests = static_cast<int64_t>(num_rows);
    max_blocks = blocks_per_row;
    ids_.resize(static_cast<size_t>(total));
    positions_.resize(static_cast<size_t>(total));
    slots_.resize(static_cast<size_t>(total));
    blocks_.resize(num_rows * static_cast<size_t>(blocks_per_row));
    starts_.resize(num_rows + 1);
    lens_.resize(num_rows);
  }

  void point_at_own() {
    token_ids = ids_.data();
    positions = positions_.data();
    slot_mapping = slots_.data();
    block_tables = blocks_.data();
    query_start = starts_.data();
    seq_lens = lens_.data();
  }

  std::vector<int64_t> ids_, positions_, slots_;
  std::vector<int32_t> blocks_, starts_, lens_;
};

}  // namespace quire
