// The sum of squares in an order that depends on the numbers of the elements alone: not on threads, vector width or
// device. An array is cut into blocks of 1024 elements. In a block, element j goes to lane j mod 32, and the 32 lanes
// are folded by halves. The sums of the blocks are the elements of the next level, which is added up in the same way.
//
// The two pieces can be computed in different places: `block_sum` where the elements are, `total` where all sums of
// blocks have come together. A part of a tensor that begins at a multiple of 1024 has the same block sums as the whole.
#pragma once

#include <stdint.h>

#include "rules/rule.h"

namespace {

constexpr int64_t kBlock = 1024;
constexpr int64_t kLanes = 32;

INLINE_HOST_DEVICE int64_t blocks_of(int64_t size) {
    return (size + kBlock - 1) / kBlock;
}

// The sum of one block of n <= kBlock elements, or, with kSquare, of their squares. row(i, count) gives the elements
// [i, i + count), at most kLanes of them.
template <bool kSquare, class Row>
inline __attribute__((always_inline)) double block_sum(int64_t n, Row row) {
    double lane[kLanes] = {};
    auto add = [&](auto x, int64_t count) {
        for (int64_t k = 0; k < count; ++k) {
            double value = x[k];
            lane[k] = lane[k] + (kSquare ? value * value : value);
        }
    };
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) add(row(i, kLanes), kLanes);
    if (i < n) add(row(i, n - i), n - i);
    for (int64_t half = kLanes / 2; half; half /= 2)
        for (int64_t k = 0; k < half; ++k) lane[k] = lane[k] + lane[k + half];
    return lane[0];
}

// The sum of n sums of blocks, over all levels above them. The sums are overwritten.
inline double total(double* sums, int64_t n) {
    for (; n > 1; n = blocks_of(n))
        for (int64_t b = 0; b < blocks_of(n); ++b) {
            int64_t rest = n - b * kBlock;
            const double* block = sums + b * kBlock;
            sums[b] = block_sum<false>(rest < kBlock ? rest : kBlock, [=](int64_t i, int64_t) { return block + i; });
        }
    return n ? sums[0] : 0;
}

}  // namespace
