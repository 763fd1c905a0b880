// Reading the elements of a gradient of any strides and type into a tile, where they have the type of the computation.
#pragma once

#include "engines/cpu/boxes.h"
#include "engines/cpu/convert.h"

namespace {

// The element at an address, converted once. Where the computation is in double, every value is kept.
template <Type kFrom, class T>
INLINE_HOST_DEVICE T element_at(const char* from) {
    if constexpr (kFrom == kFloat32)
        return static_cast<T>(*reinterpret_cast<const float*>(from));
    else if constexpr (kFrom == kFloat64)
        return static_cast<T>(*reinterpret_cast<const double*>(from));
    else
        return with_narrow(kFrom, [=](auto storage) INLINE_LAMBDA {
            using Word = typename decltype(storage)::Word;
            return static_cast<T>(storage.widen(uint32_t(*reinterpret_cast<const Word*>(from))));
        });
}

// `count` elements that are `stride` bytes apart.
template <Type kFrom, class T>
INLINE_HOST_DEVICE void gather_run(const char* from, int64_t stride, int64_t count, T* to) {
    constexpr int64_t kBytes = kItemSize[kFrom];
    if (stride == kBytes) {
        int64_t i = 0;
        if constexpr (contains(kNarrow, kFrom)) {
            for (; i + kWidth <= count; i += kWidth) {
                const Floats x = load(kFrom, from + i * kBytes);
                for (int j = 0; j < kWidth; ++j) to[i + j] = static_cast<T>(x[j]);
            }
        }
        INDEPENDENT
        for (int64_t j = i; j < count; ++j) to[j] = element_at<kFrom, T>(from + j * kBytes);
    } else {
        for (int64_t i = 0; i < count; ++i) to[i] = element_at<kFrom, T>(from + i * stride);
    }
}

// A vector of neighbours, converted once, to memory.
template <Type kFrom, class T>
INLINE_HOST_DEVICE void put_vector(const char* from, typename InVectors<T>::V& to) {
    constexpr int n = InVectors<T>::n;
    if constexpr (contains(kNarrow, kFrom) && sizeof(T) == sizeof(float))
        to = load(kFrom, from);
    else
        for (int j = 0; j < n; ++j) to[j] = element_at<kFrom, T>(from + j * kItemSize[kFrom]);
}

// `rows` elements of each of `count` columns, where the rows are neighbours in the gradient: squares of vectors are
// read column by column and written row by row.
template <Type kFrom, class T>
INLINE_HOST_DEVICE void gather_columns(const char* from, int64_t stride, int64_t count, int64_t rows, int64_t pitch,
                                       T* to) {
    constexpr int n = Square<T>::n;
    constexpr int64_t kBytes = kItemSize[kFrom], kAhead = 16;  // columns whose memory is asked for in advance
    int64_t i = 0;
    for (; i + n <= count; i += n) {
        for (int j = 0; j < n; ++j)
            for (int64_t r = 0; r < rows; r += kLine / kBytes)
                __builtin_prefetch(from + (i + j + kAhead) * stride + r * kBytes);
        int64_t r = 0;
        for (; r + n <= rows; r += n) {
            Square<T> square;
            for (int j = 0; j < n; ++j) put_vector<kFrom, T>(from + (i + j) * stride + r * kBytes, square.rows[j]);
            square.transpose();
            for (int j = 0; j < n; ++j)
                *reinterpret_cast<typename InVectors<T>::V*>(to + (r + j) * pitch + i) = square.rows[j];
        }
        for (; r < rows; ++r)
            for (int j = 0; j < n; ++j)
                to[r * pitch + i + j] = element_at<kFrom, T>(from + (i + j) * stride + r * kBytes);
    }
    for (; i < count; ++i)
        for (int64_t r = 0; r < rows; ++r) to[r * pitch + i] = element_at<kFrom, T>(from + i * stride + r * kBytes);
}

// The elements of a box, run by run along the fastest axis of the parameter.
template <Type kFrom, class T>
void gather(const Gathering& what, void* tile) {
    const Slot& slot = *what.slot;
    const Box& box = what.box;
    const char* from = static_cast<const char*>(slot.arrays[kGrad]);
    T* to = static_cast<T*>(tile);
    if (!slot.grad_axes) return gather_run<kFrom>(from + box.first * kItemSize[kFrom], kItemSize[kFrom], box.count, to);

    const Axis* axes = slot.grad_axes;
    const int last = slot.grad_axis_count - 1;
    int64_t index[kMostAxes];
    for (int64_t axis = last, rest = box.first; axis >= 0; rest /= axes[axis--].size) {
        index[axis] = rest % axes[axis].size;
        from += index[axis] * axes[axis].stride;
    }
    const int64_t row_stride = axes[what.row_axis].stride;
    for (int64_t done = 0; done < box.count;) {
        const int64_t stride = axes[last].stride;
        int64_t count = axes[last].size - index[last];
        count = count < box.count - done ? count : box.count - done;
        if (box.rows == 1) {
            gather_run<kFrom>(from, stride, count, to + done);
        } else if (row_stride == kItemSize[kFrom]) {
            gather_columns<kFrom>(from, stride, count, box.rows, what.pitch, to + done);
        } else {
            for (int64_t i = 0; i < count; ++i) {
                const char* column = from + i * stride;
                for (int64_t r = 0; r < box.rows; ++r)
                    to[done + i + r * what.pitch] = element_at<kFrom, T>(column + r * row_stride);
            }
        }
        done += count;
        from += count * stride;
        index[last] += count;
        for (int axis = last; axis > 0 && index[axis] == axes[axis].size; --axis) {
            from += axes[axis - 1].stride - axes[axis].size * axes[axis].stride;
            index[axis] = 0;
            ++index[axis - 1];
        }
    }
}

}  // namespace
