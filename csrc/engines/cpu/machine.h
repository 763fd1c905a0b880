// The accumulator machine on a CPU. The accumulator is eight vectors, which stay in the registers that pass arguments
// while the function of a step jumps to that of the next one. Each block of elements ends with a return, so that only
// speed depends on the compiler's making jumps of these calls.
#pragma once

#include <string.h>

// clang-format off: the vectors come first
#include "engines/cpu/vector.h"
// clang-format on
#include "programs/instructions.h"
#include "storage/all.h"

namespace {

using namespace fusedstep;

// Vectors for registers, of natural alignment.
typedef float FloatRegister __attribute__((vector_size(kWidth * sizeof(float))));
typedef double DoubleRegister __attribute__((vector_size(kWidth * sizeof(float))));
typedef int32_t FloatBits __attribute__((vector_size(kWidth * sizeof(float))));
typedef int64_t DoubleBits __attribute__((vector_size(kWidth * sizeof(float))));

// What the texts of the steps are made of, for vectors. The names hide those of rules/rule.h, which are for single
// numbers. A condition is a vector of ones or zeros in all bits of an element.
namespace machine {

template <class T>
struct In;
template <>
struct In<float> {
    using V = FloatRegister;
};
template <>
struct In<double> {
    using V = DoubleRegister;
};
template <class V>
struct Of;
template <>
struct Of<FloatRegister> {
    using T = float;
    using Bits = FloatBits;
};
template <>
struct Of<DoubleRegister> {
    using T = double;
    using Bits = DoubleBits;
};
template <class V>
using Element = typename Of<V>::T;
template <class V>
using Bits = typename Of<V>::Bits;

template <class V>
INLINE_HOST_DEVICE V splat(Element<V> k) {
    V all;
    for (unsigned i = 0; i < sizeof(V) / sizeof(k); ++i) all[i] = k;
    return all;
}
template <class V>
INLINE_HOST_DEVICE Bits<V> top_bits() {
    return (Bits<V>)splat<V>(Element<V>(-0.0));
}
template <class V>
INLINE_HOST_DEVICE V pick(Bits<V> which, V x, V y) {
    return (V)(((Bits<V>)x & which) | ((Bits<V>)y & ~which));
}

#if defined(__AVX512F__)
INLINE_HOST_DEVICE FloatRegister root(FloatRegister x) {
    return (FloatRegister)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
}
INLINE_HOST_DEVICE DoubleRegister root(DoubleRegister x) {
    return (DoubleRegister)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
}
#elif defined(__AVX2__)
INLINE_HOST_DEVICE FloatRegister root(FloatRegister x) {
    return (FloatRegister)_mm256_sqrt_ps((__m256)x);
}
INLINE_HOST_DEVICE DoubleRegister root(DoubleRegister x) {
    return (DoubleRegister)_mm256_sqrt_pd((__m256d)x);
}
#elif defined(__x86_64__)
INLINE_HOST_DEVICE FloatRegister root(FloatRegister x) {
    return (FloatRegister)_mm_sqrt_ps((__m128)x);
}
INLINE_HOST_DEVICE DoubleRegister root(DoubleRegister x) {
    return (DoubleRegister)_mm_sqrt_pd((__m128d)x);
}
#else
template <class V>
INLINE_HOST_DEVICE V root(V x) {
    for (unsigned i = 0; i < sizeof(V) / sizeof(Element<V>); ++i) x[i] = ::root(x[i]);
    return x;
}
#endif

template <class V>
INLINE_HOST_DEVICE V negative(V a) {
    return (V)((Bits<V>)a ^ top_bits<V>());
}
template <class V>
INLINE_HOST_DEVICE V magnitude(V a) {
    return (V)((Bits<V>)a & ~top_bits<V>());
}
template <class V>
INLINE_HOST_DEVICE V sign_of(V a) {
    const V zero = {}, one = splat<V>(1), otherwise = a + zero;
    return pick(a < zero, negative(one), pick(a > zero, one, otherwise));
}
template <class V>
INLINE_HOST_DEVICE V larger(V a, V b) {
    return pick((a + V{} > b) | (a != a), a, b);
}
template <class V>
INLINE_HOST_DEVICE V smaller(V a, V b) {
    return pick((a + V{} < b) | (a != a), a, b);
}
template <class V>
INLINE_HOST_DEVICE V less(V a, V b) {
    return (V)(a < b);
}
template <class V>
INLINE_HOST_DEVICE V at_most(V a, V b) {
    return (V)(a <= b);
}
template <class V>
INLINE_HOST_DEVICE V equal(V a, V b) {
    return (V)(a == b);
}
template <class V>
INLINE_HOST_DEVICE V nonzero(V k) {
    return (V)(k != V{});
}
template <class V>
INLINE_HOST_DEVICE V both(V a, V b) {
    return (V)((Bits<V>)a & (Bits<V>)b);
}
template <class V>
INLINE_HOST_DEVICE V either(V a, V b) {
    return (V)((Bits<V>)a | (Bits<V>)b);
}
template <class V>
INLINE_HOST_DEVICE V inverse(V a) {
    return (V) ~(Bits<V>)a;
}
template <class V>
INLINE_HOST_DEVICE V select(V a, V x, V y) {
    return pick((Bits<V>)a, x, y);
}

constexpr int kVectors = 8;  // of the accumulator
constexpr int kBlockBytes = kVectors * kWidth * static_cast<int>(sizeof(float));

// The addresses of the registers, for the block of elements that is computed.
struct Registers {
    char* at[kRegisters];
};

// An instruction in the form that runs: its function, its registers and its scalars.
#define ACCUMULATOR V a0, V a1, V a2, V a3, V a4, V a5, V a6, V a7
template <class T, class V = typename In<T>::V>
struct Jump {
    void (*run)(const Jump* step, const Registers* registers, ACCUMULATOR);
    int32_t x, y;
    T k, q;
};

template <class T, class Text, class V = typename In<T>::V>
void do_step(const Jump<T>* step, const Registers* registers, ACCUMULATOR) {
    const char* const xs = registers->at[step->x];
    const char* const ys = registers->at[step->y];
    const V k = splat<V>(step->k), q = splat<V>(step->q);
    const auto each = [&](V a, int i) INLINE_LAMBDA -> V {
        V x, y;
        memcpy(&x, xs + i * sizeof(V), sizeof(V));
        memcpy(&y, ys + i * sizeof(V), sizeof(V));
        return Text()(a, x, y, k, q);
    };
    a0 = each(a0, 0), a1 = each(a1, 1), a2 = each(a2, 2), a3 = each(a3, 3);
    a4 = each(a4, 4), a5 = each(a5, 5), a6 = each(a6, 6), a7 = each(a7, 7);
    return step[1].run(step + 1, registers, a0, a1, a2, a3, a4, a5, a6, a7);
}

template <class T, class V = typename In<T>::V>
void do_store(const Jump<T>* step, const Registers* registers, ACCUMULATOR) {
    char* const to = registers->at[step->x];
    const auto each = [=](V a, int i) INLINE_LAMBDA { memcpy(to + i * sizeof(V), &a, sizeof(V)); };
    each(a0, 0), each(a1, 1), each(a2, 2), each(a3, 3), each(a4, 4), each(a5, 5), each(a6, 6), each(a7, 7);
    return step[1].run(step + 1, registers, a0, a1, a2, a3, a4, a5, a6, a7);
}

template <class T, class V = typename In<T>::V>
void do_end(const Jump<T>*, const Registers*, V, V, V, V, V, V, V, V) {}
#undef ACCUMULATOR

#define TEXT(Name, ...)                                                                                   \
    struct Name##Text {                                                                                   \
        template <class V>                                                                                \
        INLINE_HOST_DEVICE V operator()([[maybe_unused]] V a, [[maybe_unused]] V x, [[maybe_unused]] V y, \
                                        [[maybe_unused]] V k, [[maybe_unused]] V q) const {               \
            return __VA_ARGS__;                                                                           \
        }                                                                                                 \
    };
FUSEDSTEP_INSTRUCTIONS(TEXT)
#undef TEXT

template <class T>
using Function = decltype(Jump<T>::run);
#define ENTRY(Name, ...) do_step<T, Name##Text>,
template <class T>
constexpr Function<T> kFunctions[] = {FUSEDSTEP_INSTRUCTIONS(ENTRY) do_store<T>, do_end<T>};
#undef ENTRY

// Make the jumps of code with its scalars.
template <class T>
void prepare(const Code& code, const T* scalars, Jump<T>* jumps) {
    for (int i = 0; i < code.count; ++i) {
        const Instruction& step = code.instructions[i];
        jumps[i] = {kFunctions<T>[static_cast<int>(step.what)], step.x, step.y, scalars[step.k], scalars[step.q]};
    }
}

// Call compute(copies) with copies of n elements of each array, followed by zeros up to so many bytes, and copy back
// what is written.
template <int kBytes, class T, class Compute>
void through_copies(T* const* arrays, uint32_t written, int64_t n, Compute compute) {
    alignas(64) char room[kFirstTemporary][kBytes];
    T* copies[kFirstTemporary] = {};
    for (int j = 0; j < kFirstTemporary; ++j) {
        if (!arrays[j]) continue;
        copies[j] = reinterpret_cast<T*>(room[j]);
        memset(room[j], 0, kBytes);
        memcpy(room[j], arrays[j], n * sizeof(T));
    }
    compute(copies);
    for (int j = 0; j < kFirstTemporary; ++j)
        if (written >> j & 1) memcpy(arrays[j], copies[j], n * sizeof(T));
}

// Run over n elements of the arrays, which lie in the registers of the code in this order; those that it does not use
// are null. `written` has a bit for each array that is written. Elements behind the last whole block go through copies.
template <class T>
void run(const Jump<T>* jumps, uint32_t written, T* const* arrays, int64_t n) {
    constexpr int64_t kBlock = kBlockBytes / static_cast<int64_t>(sizeof(T));
    alignas(64) char unused[kBlockBytes], temporaries[kRegisters - kFirstTemporary][kBlockBytes];
    Registers registers;
    for (int j = kFirstTemporary; j < kRegisters; ++j) registers.at[j] = temporaries[j - kFirstTemporary];
    const typename In<T>::V zero = {};
    const auto run_blocks = [&](T* const* from, int64_t blocks) {
        for (int j = 0; j < kFirstTemporary; ++j) registers.at[j] = from[j] ? reinterpret_cast<char*>(from[j]) : unused;
        for (; blocks > 0; --blocks) {
            jumps->run(jumps, &registers, zero, zero, zero, zero, zero, zero, zero, zero);
            for (int j = 0; j < kFirstTemporary; ++j) registers.at[j] += from[j] ? kBlockBytes : 0;
        }
    };
    run_blocks(arrays, n / kBlock);
    const int64_t rest = n % kBlock;
    if (rest == 0) return;
    T* last[kFirstTemporary];
    for (int j = 0; j < kFirstTemporary; ++j) last[j] = arrays[j] ? arrays[j] + (n - rest) : nullptr;
    through_copies<kBlockBytes>(last, written, rest, [&](T* const* copies) { run_blocks(copies, 1); });
}

}  // namespace machine
}  // namespace
