// Reading, on a GPU, the elements of a gradient of any strides and type: by their addresses, one at a time.
#pragma once

#include "engines/cuda/compiler.h"
#include "engines/cuda/table.h"
#include "storage/all.h"

namespace {

using namespace fusedstep;
using namespace fusedstep::cuda;

// Bytes of an element: four bits of a number for each type. A device cannot index kItemSize, which is an array of the
// host, and a choice among all types would be long.
constexpr uint64_t packed_sizes() {
    uint64_t sizes = 0;
    for (int type = 0; type < kTypes; ++type) sizes |= static_cast<uint64_t>(kItemSize[type]) << 4 * type;
    return sizes;
}
INLINE_HOST_DEVICE int64_t item_size(Type type) {
    constexpr uint64_t sizes = packed_sizes();
    return static_cast<int64_t>(sizes >> 4 * type & 15);
}

INLINE_HOST_DEVICE void* at(void* array, Type type, int64_t i) {
    return static_cast<char*>(array) + i * item_size(type);
}

// The elements of a gradient from number `first` on, counted as the elements of the parameter lie in memory.
struct Gathered {
    char* data;
    const Axis* axes;  // the slowest first
    int64_t first;
    int count;  // of axes; without axes, the elements are neighbours
    Type type;

    INLINE_HOST_DEVICE Gathered(const Table& table, const Gradient& gradient, int64_t first)
        : data(static_cast<char*>(gradient.data)),
          axes(table.axes + gradient.first_axis),
          first(first),
          count(gradient.axis_count),
          type(gradient.type) {}
};

INLINE_HOST_DEVICE char* element_of(const Gathered& grad, int64_t i) {
    i += grad.first;
    if (grad.count == 0) return grad.data + i * item_size(grad.type);
    char* element = grad.data;
#pragma unroll 1
    for (int axis = grad.count; axis--;) {
        const int64_t size = grad.axes[axis].size, next = i / size;
        element += (i - next * size) * grad.axes[axis].stride;
        i = next;
    }
    return element;
}

// A double rounded to float. What is subnormal counts as zero, but for what becomes 2^-126 if rounded to 24 bits.
INLINE_HOST_DEVICE float rounded_once(double x) {
    constexpr double kSmallest = 0x1p-126;
    const double magnitude = x < 0 ? -x : x;
    if (!(magnitude < kSmallest)) return as_float(x);
    const uint32_t sign = static_cast<uint32_t>(__builtin_bit_cast(uint64_t, x) >> 32) & 0x80000000;
    return float_of(sign | (magnitude < kSmallest - 0x1p-151 ? 0 : bits_of(0x1p-126f)));
}

// The element at an address, converted once to T, the type of the computation.
template <class T>
INLINE_HOST_DEVICE T converted(Type type, const char* element) {
    if (type == kFloat64) {
        const double x = *reinterpret_cast<const double*>(element);
        if constexpr (sizeof(T) == sizeof(double))
            return x;
        else
            return rounded_once(x);
    }
    float x;
    if (type == kFloat32)
        x = *reinterpret_cast<const float*>(element);
    else
        x = with_narrow(type, [=](auto storage) INLINE_LAMBDA {
            using Word = typename decltype(storage)::Word;
            return storage.widen(uint32_t(*reinterpret_cast<const Word*>(element)));
        });
    if constexpr (sizeof(T) == sizeof(double))
        return as_double(x);
    else
        return x;
}

// Divisions need many registers, so the functions that find an element are not inlined.
template <class T>
__host__ __device__ __noinline__ T gathered(const Gathered grad, int64_t i) {
    return converted<T>(grad.type, element_of(grad, i));
}

// Set element i to +0.
[[maybe_unused]] __host__ __device__ __noinline__ void zero(const Gathered grad, int64_t i) {
    char* const element = element_of(grad, i);
    if (grad.type == kFloat64)
        *reinterpret_cast<uint64_t*>(element) = 0;
    else if (grad.type == kFloat32)
        *reinterpret_cast<uint32_t*>(element) = 0;
    else
        with_word(grad.type, [=](auto word) INLINE_LAMBDA { *reinterpret_cast<decltype(word)*>(element) = 0; });
}

}  // namespace
