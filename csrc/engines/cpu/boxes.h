// The order in which a gradient is read that does not lie in memory like its parameter. Its elements are collected in
// tiles that fit into a cache, from where the loops read them as if they had been there all the time.
//
// A transposed gradient has the neighbours of an element where the parameter has elements of other rows. So a tile is a
// box: a few rows of the parameter, as many as share some neighbouring lines of memory in the gradient, and of each row
// as many elements as there is room for. Each line of the gradient is then read once.
#pragma once

#include <stdlib.h>

#include "step.h"

namespace fusedstep {

// A tile is as large as a cache of the second level: with whole rows in it, both gradient and parameter are read in
// long stretches, which counts for more than the nearness of the tile.
constexpr int64_t kTileBytes = 1 << 20;
// Elements of a tile where the neighbours are those of the parameter: for a cache of the first level.
constexpr int64_t kRun = 4096;
constexpr int64_t kLine = 64;                      // bytes of a cache line
constexpr int64_t kLines = 4;                      // neighbouring lines that a box takes from a column of the gradient
constexpr int64_t kMostRows = kLines * kLine / 2;  // elements of the smallest type in so many lines
constexpr int64_t kPadding = 16;                   // elements between rows of a tile: rows fall on different cache sets
constexpr int kMostAxes = 64;                      // of an array of NumPy

// `rows` runs of `count` neighbours of a parameter, of which the first begins with element `first`, and each other one
// `pitch` elements after the one before.
struct Box {
    int64_t first, rows, pitch, count;

    bool is_run() const { return rows == 1 || count == pitch; }
};

// Elements of a gradient to be collected: row r of the box goes to the elements `pitch * r` and following of a tile.
struct Gathering {
    const Slot* slot;
    int row_axis;  // the axis along which the rows of the box follow each other
    Box box;
    int64_t pitch;  // elements between two rows in the tile
};

// The axis along which the gradient's neighbours follow each other, where it is worth the while to read along it.
inline int row_axis_of(const Slot& slot) {
    const int last = slot.grad_axis_count - 1;
    int best = last;
    for (int axis = 0; axis < last; ++axis) {
        const int64_t stride = llabs(slot.grad_axes[axis].stride);
        if (stride != 0 && stride < kLine && stride < llabs(slot.grad_axes[best].stride)) best = axis;
    }
    return best;
}

// The room for a tile of a slot, in elements of the type of the computation, without the padding.
inline int64_t tile_room(const Slot& slot) {
    const int64_t most = kTileBytes / kItemSize[computed_in(slot.types.param)];
    return slot.size < most ? slot.size : most;
}
// The bytes of a tile of a slot. A box that is no run has at most kMostRows rows, which are padded.
inline int64_t tile_bytes(const Slot& slot) {
    return (tile_room(slot) + kMostRows * kPadding) * kItemSize[computed_in(slot.types.param)];
}

// Call visit(row axis, box) for boxes that hold the elements [begin, end) of a slot, each of which fits into a tile.
template <class Visit>
void each_box(const Slot& slot, int64_t begin, int64_t end, Visit visit) {
    const int64_t room = tile_room(slot);
    const int axis = slot.grad_axes ? row_axis_of(slot) : -1;
    int64_t row = 1;  // elements of a row, which is all that varies faster than the axis
    for (int i = axis + 1; i < slot.grad_axis_count; ++i) row *= slot.grad_axes[i].size;
    if (row == 1) {  // the gradient's neighbours are those of the parameter
        for (int64_t count; begin < end; begin += count) {
            count = end - begin < kRun ? end - begin : kRun;
            visit(axis, Box{begin, 1, count, count});
        }
        return;
    }
    const int64_t size = slot.grad_axes[axis].size, in_lines = kLines * kLine / llabs(slot.grad_axes[axis].stride);
    const int64_t least = in_lines < kMostRows ? in_lines : kMostRows;
    const int64_t most = room / row > least ? room / row : least;  // rows of a box
    while (begin < end) {
        const int64_t into = begin % row;
        int64_t rows = size - begin / row % size;
        rows = rows < most ? rows : most;
        rows = rows < (end - begin) / row ? rows : (end - begin) / row;
        if (into != 0 || rows == 0) {  // a part of a row
            const int64_t rest = end - begin < row - into ? end - begin : row - into;
            const int64_t count = rest < room ? rest : room;
            visit(axis, Box{begin, 1, row, count});
            begin += count;
            continue;
        }
        const int64_t wide = row * rows <= room ? row : room / rows;
        for (int64_t done = 0; done < row; done += wide)
            visit(axis, Box{begin + done, rows, row, row - done < wide ? row - done : wide});
        begin += rows * row;
    }
}

}  // namespace fusedstep
