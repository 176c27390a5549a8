// Scales, minima and zeros of a panel's groups as float32 (GroupNumbers in weight_format.h). In two levels the products are exact: eleven
// bits times eight.
#pragma once

#include "dot.h"
#include "weight_format.h"

namespace quire {
namespace QUIRE_LEVEL {

class PanelNumbers {
 public:
  PanelNumbers(const WeightView& weight, int64_t panel)
      : numbers_(weight.groups), zeros_(weight.zeros), group_(weight.group), first_(panel * (weight.num_inputs / weight.group)),
        first_factor_(panel * (weight.num_inputs / kFactorGroup)) {}

  // Of sixteen outputs of the panel, the lower or the upper half.
  F32x16 scale(int64_t group, int half) const { return number<0>(numbers_.scales, numbers_.scale_factors, group, half); }
  F32x16 minimum(int64_t group, int half) const {
    return number<4>(numbers_.has_nibbles() ? numbers_.scales : numbers_.minima, numbers_.minimum_factors, group, half);
  }
  F32x16 zero(int64_t group, int half) const { return load_bytes_as_float(zeros_ + place(group, half)); }
  bool has_minima() const { return numbers_.has_minima(); }
  bool has_zeros() const { return zeros_ != nullptr; }

 private:
  int64_t place(int64_t group, int half) const { return (first_ + group) * kPanelRows + half * kLanes; }

  // kNibble: where it begins in its byte, of numbers that are nibbles.
  template <int kNibble>
  F32x16 number(const void* level, const void* factors, int64_t group, int half) const {
    const int64_t at = place(group, half);
    if (!factors) return load(static_cast<const f16*>(level) + at);
    const int64_t factor_at = (first_factor_ + group * group_ / kFactorGroup) * kPanelRows + half * kLanes;
    const F32x16 own = numbers_.has_nibbles() ? load_nibbles_as_float<kNibble>(static_cast<const uint8_t*>(level) + at)
                                              : load(static_cast<const int8_t*>(level) + at);
    return own * load(static_cast<const f16*>(factors) + factor_at);
  }

  const GroupNumbers& numbers_;
  const uint8_t* zeros_;
  int64_t group_, first_, first_factor_;
};

}  // namespace QUIRE_LEVEL
}  // namespace quire
