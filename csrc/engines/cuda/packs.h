// Reading and writing n neighbouring elements of an array at once, on a GPU.
#pragma once

#include "element/philox.h"
#include "engines/cuda/compiler.h"
#include "storage/all.h"

namespace {

using namespace fusedstep;
using namespace fusedstep::cuda;

template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
    T x[n];
};

// The n elements of an array from the i-th on, aligned so that they are read at once. The compiler does not see that
// the pointer, which comes from shared memory, points into global memory.
template <class T, int n>
INLINE_HOST_DEVICE Pack<T, n>& pack_at(const void* array, int i) {
    T* first = static_cast<T*>(const_cast<void*>(array)) + i;
#ifdef __CUDA_ARCH__
    __builtin_assume(__isGlobal(first));
#endif
    return *reinterpret_cast<Pack<T, n>*>(first);
}

// The random bits of two elements of an array, i and i + 1 for an even i. The function needs many registers and runs
// rarely, so it is not inlined.
[[maybe_unused]] __host__ __device__ __noinline__ uint32_t noise_word(uint64_t key, uint32_t array, int64_t i) {
    const int within = static_cast<int>(i % kNoiseTile);
    const uint64_t counter = static_cast<uint64_t>(i / kNoiseTile) * kCounters + within / 2 % kCounters;
    uint64_t x[4] = {counter, counter >> 32, array, 0};
    philox(x, key);
    const int which = within / (2 * kCounters);
    return static_cast<uint32_t>(which < 2 ? (which == 0 ? x[0] : x[1]) : (which == 2 ? x[2] : x[3]));
}

// The random bits of the elements [i, i + n) of an array.
template <int n>
INLINE_HOST_DEVICE void noise_of(uint64_t key, uint32_t array, int64_t i, uint32_t (&noise)[n]) {
    uint32_t word = 0;
#pragma unroll
    for (int j = 0; j < n; ++j) {
        const bool odd = (i + j) % 2;
        if (j == 0 || !odd) word = noise_word(key, array, i + j - odd);
        noise[j] = odd ? word >> 16 : word & 0xffff;
    }
}

// Reading and writing the elements [i, i + n) of an array at once. Where the compiler knows the type of the array, no
// branch on the type remains.

template <int n>
INLINE_HOST_DEVICE void load(Type, const void* array, int i, double (&x)[n]) {
    const auto pack = pack_at<double, n>(array, i);
    for (int j = 0; j < n; ++j) x[j] = pack.x[j];
}

// Elements of a narrow type, as words.
template <int n>
INLINE_HOST_DEVICE void load_words(Type type, const void* array, int i, uint32_t (&words)[n]) {
    with_word(type, [&](auto word) INLINE_LAMBDA {
        const auto pack = pack_at<decltype(word), n>(array, i);
        for (int j = 0; j < n; ++j) words[j] = pack.x[j];
    });
}

INLINE_HOST_DEVICE float widened(Type type, uint32_t word) {
    return with_narrow(type, [=](auto storage) INLINE_LAMBDA { return storage.widen(word); });
}
INLINE_HOST_DEVICE uint32_t narrowed(Type type, float x) {
    return with_narrow(type, [=](auto storage) INLINE_LAMBDA { return storage.narrow(x); });
}
INLINE_HOST_DEVICE uint32_t narrowed(Type type, float x, uint32_t noise) {
    return with_narrow(type, [=](auto storage) INLINE_LAMBDA { return storage.narrow(x, noise); });
}

template <int n>
INLINE_HOST_DEVICE void load(Type type, const void* array, int i, float (&x)[n]) {
    if (type == kFloat32) {
        const auto pack = pack_at<float, n>(array, i);
        for (int j = 0; j < n; ++j) x[j] = pack.x[j];
    } else {
        uint32_t words[n];
        load_words(type, array, i, words);
        for (int j = 0; j < n; ++j) x[j] = widened(type, words[j]);
    }
}

template <class T, int n, class X>
INLINE_HOST_DEVICE void put(void* array, int i, const X (&x)[n]) {
    Pack<T, n> pack;
    for (int j = 0; j < n; ++j) pack.x[j] = static_cast<T>(x[j]);
    pack_at<T, n>(array, i) = pack;
}

template <int n>
INLINE_HOST_DEVICE void put_words(Type type, void* array, int i, const uint32_t (&words)[n]) {
    with_word(type, [&](auto word) INLINE_LAMBDA { put<decltype(word)>(array, i, words); });
}

// How numbers are rounded when they are stored: to nearest, or by random bits, which depend on a key, on the array and
// on the number of the element.
struct Rounding {
    bool stochastic;
    uint64_t key;
    uint32_t array;
    int64_t element;
};

template <int n>
INLINE_HOST_DEVICE void store(Type, void* array, int i, const double (&x)[n], Rounding) {
    put<double>(array, i, x);
}

template <int n>
INLINE_HOST_DEVICE void store(Type type, void* array, int i, const float (&x)[n], Rounding rounding) {
    if (type == kFloat32) return put<float>(array, i, x);
    uint32_t words[n];
    if (rounding.stochastic) {
        uint32_t noise[n];
        noise_of(rounding.key, rounding.array, rounding.element, noise);
        for (int j = 0; j < n; ++j) words[j] = narrowed(type, x[j], noise[j]);
    } else {
        for (int j = 0; j < n; ++j) words[j] = narrowed(type, x[j]);
    }
    put_words(type, array, i, words);
}

// A parameter with a master counts as its master, unless somebody has written to the parameter since.
template <int n>
INLINE_HOST_DEVICE void load_with_master(const Types& types, const void* param, const void* master, int i,
                                         float (&x)[n]) {
    uint32_t words[n];
    load_words(types.param, param, i, words);
    if (types.master == kUInt16) {
        const auto low = pack_at<uint16_t, n>(master, i);
        for (int j = 0; j < n; ++j) x[j] = Split::joined(words[j], uint32_t(low.x[j]));
    } else {
        load(kFloat32, master, i, x);
        for (int j = 0; j < n; ++j)
            x[j] = narrowed(types.param, x[j]) == words[j] ? x[j] : widened(types.param, words[j]);
    }
}

template <int n>
INLINE_HOST_DEVICE void store_with_master(const Types& types, void* param, void* master, int i, const float (&x)[n]) {
    if (types.master == kUInt16) {
        uint32_t high[n], low[n];
        for (int j = 0; j < n; ++j) high[j] = Split::high(x[j]), low[j] = Split::low(x[j]);
        put<uint16_t>(master, i, low);
        put<uint16_t>(param, i, high);
    } else {
        put<float>(master, i, x);
        store(types.param, param, i, x, Rounding{});
    }
}

}  // namespace
