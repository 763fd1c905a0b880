// Sums over the lanes of a warp, in the order of norm.h, and where those of a tensor stand.
#pragma once

#include "engines/cuda/table.h"
#include "rules/rule.h"

namespace {

// The sum of the lanes of a warp. Only lane 0 returns it.
__device__ inline double fold(double lane) {
    for (int half = fusedstep::cuda::kWarp / 2; half; half /= 2) lane = lane + __shfl_down_sync(0xffffffff, lane, half);
    return lane;
}

INLINE_HOST_DEVICE fusedstep::SquareSum* own_squares(const fusedstep::cuda::Table& table) {
    return table.squares + static_cast<int64_t>(table.device) * table.count;
}

}  // namespace
