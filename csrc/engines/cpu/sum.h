// The sum of arrays, element by element, in the order of a balanced tree: neighbours are added, (0 + 1), (2 + 3), then
// their sums, and so on; a node without a neighbour goes up as it is. The order depends on the number of arrays alone.
#pragma once

#include "engines/cpu/convert.h"
#include "engines/cpu/kernels.h"

namespace {

// The number of arrays in the left half of a tree of `count` arrays: the largest power of two below it.
constexpr int64_t half_of(int64_t count) {
    int64_t half = 1;
    while (2 * half < count) half *= 2;
    return half;
}

// The sum of element i of arrays, in registers.
template <int kCount, class T>
INLINE_HOST_DEVICE T tree(const T* const* arrays, int64_t i) {
    if constexpr (kCount == 1)
        return arrays[0][i];
    else
        return tree<half_of(kCount)>(arrays, i) + tree<kCount - half_of(kCount)>(arrays + half_of(kCount), i);
}

// Widen n elements. `to` has room for whole vectors.
template <class Storage>
INLINE_HOST_DEVICE void widen(Storage, const char* from, int64_t n, float* to) {
    constexpr int64_t kBytes = kItemSize[Storage::type];
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) put(load(Storage::type, from + i * kBytes), to + i);
    if (i == n) return;
    char last[kWidth * sizeof(float)] = {};
    memcpy(last, from + i * kBytes, (n - i) * kBytes);
    put(load(Storage::type, last), to + i);
}

// A run of elements of a sum. Larger trees are made of those of few arrays, whose sums wait in the nearest cache.
template <class T>
struct RunOfSum {
    static constexpr int64_t kMost = 2048 / sizeof(T);  // elements of a run: whole vectors
    static constexpr int kFew = 8;
    static constexpr int kLevels = 29;  // above trees of few arrays, for 2^31 arrays and the top
    static constexpr Type kType = sizeof(T) == sizeof(double) ? kFloat64 : kFloat32;
    using Place = T[kMost];

    const Summation& what;
    int64_t begin, n;
    Place* wide;  // where few narrow arrays are widened

    template <int kCount>
    static void add(const T* const* arrays, T* to, int64_t n) {
        const T* from[kCount];
        for (int j = 0; j < kCount; ++j) from[j] = arrays[j];
        INDEPENDENT  // also where `to` is one of the arrays: an element is read before it is written
            for (int64_t i = 0; i < n; ++i) to[i] = tree<kCount>(from, i);
    }

    // The elements of an array: where they are, or widened, at `place`.
    const T* elements(int64_t array, T* place) const {
        const Summand& part = what.parts[array];
        const char* from = static_cast<const char*>(part.data) + begin * kItemSize[part.type];
        if (part.type == kType) return reinterpret_cast<const T*>(from);
        if constexpr (kType == kFloat32)
            with_narrow(part.type, [&](auto storage) INLINE_LAMBDA { widen(storage, from, n, place); });
        return place;
    }

    // Add up 2 to kFew arrays from number `first` on, at `to`.
    void add_few(int64_t first, int64_t count, T* to) const {
        static constexpr void (*kAdd[])(const T* const*, T*, int64_t) = {add<2>, add<3>, add<4>, add<5>,
                                                                         add<6>, add<7>, add<8>};
        const T* from[kFew];
        for (int64_t j = 0; j < count; ++j) from[j] = elements(first + j, wide[j]);
        kAdd[count - 2](from, to, n);
    }

    // Return where the sum of `count` arrays from number `first` on is: at `place`, or where a single array is.
    // Meanwhile `room` is used.
    const T* node(int64_t first, int64_t count, T* place, Place* room) const {
        if (count == 1) return elements(first, place);
        if (count <= kFew) {
            add_few(first, count, place);
        } else {
            const int64_t half = half_of(count);
            const T* halves[] = {node(first, half, place, room), node(first + half, count - half, room[0], room + 1)};
            add<2>(halves, place, n);
        }
        return place;
    }

    // The last addition of the tree writes to `to`, which may be one of the arrays: all of them have been read.
    void write(T* to, Place* room) const {
        const int64_t count = what.count, half = half_of(count);
        if (count == 1) {
            const T* only = elements(0, room[0]);
            if (only != to) memcpy(to, only, n * sizeof(T));
        } else if (count <= kFew) {
            add_few(0, count, to);
        } else {
            const T* halves[] = {node(0, half, room[0], room + 1), node(half, count - half, room[1], room + 2)};
            add<2>(halves, to, n);
        }
    }
};

template <class T>
void sum(const Summation& what, int64_t begin, int64_t end) {
    using Run = RunOfSum<T>;
    alignas(64) typename Run::Place wide[Run::kFew], room[Run::kLevels];
    for (int64_t i = begin; i < end; i += Run::kMost) {
        const int64_t n = end - i < Run::kMost ? end - i : Run::kMost;
        Run{what, i, n, wide}.write(static_cast<T*>(what.out) + i, room);
    }
}

}  // namespace
