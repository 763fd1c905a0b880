// Vectors as long as the registers of an instruction set, in the notation that GCC and Clang share. Operations of which
// compilers make poor code are written by hand.
#pragma once

#include <stdint.h>

#include <utility>

#include "rules/rule.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

// Arrays that overlap have been refused, so the elements of a loop are independent.
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#define ONE_VECTOR INDEPENDENT
#else
#define INDEPENDENT _Pragma("GCC ivdep")
// GCC would fully unroll the kWidth iterations, and then vectorise them again with shuffles.
#define ONE_VECTOR INDEPENDENT _Pragma("GCC unroll 1")
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

// Vectors that may lie at any address of memory.
#define VECTOR(T, n) T __attribute__((vector_size(n * sizeof(T)), aligned(sizeof(T)), may_alias))
typedef VECTOR(float, kWidth) Floats;
typedef VECTOR(int32_t, kWidth) Ints;
typedef VECTOR(uint32_t, kWidth) Words;
typedef VECTOR(uint16_t, kWidth) Halves;
typedef VECTOR(uint32_t, (kWidth / 2)) FewWords;
typedef VECTOR(double, (kWidth / 2)) Doubles;
#undef VECTOR
// A vector for registers only: it has its natural alignment, since a template argument loses any other.
typedef uint64_t Longs __attribute__((vector_size(kWidth / 2 * sizeof(uint64_t))));

#if defined(__AVX512F__)
INLINE_HOST_DEVICE Words widened(Halves h) {
    return (Words)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)h);
}
INLINE_HOST_DEVICE Halves narrowed(Words h) {
    return (Halves)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)h);
}
#elif defined(__AVX2__)
INLINE_HOST_DEVICE Words widened(Halves h) {
    return (Words)_mm256_cvtepu16_epi32((__m128i)h);
}
INLINE_HOST_DEVICE Halves narrowed(Words h) {  // each word is below 2^16
    __m256i x = (__m256i)h;
    return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
#else
INLINE_HOST_DEVICE Words widened(Halves h) {
    return __builtin_convertvector(h, Words);
}
INLINE_HOST_DEVICE Halves narrowed(Words h) {
    return __builtin_convertvector(h, Halves);
}
#endif

// The functions of storage/bits.h and philox.h, for vectors.

INLINE_HOST_DEVICE Words bits_of(Floats x) {
    return (Words)x;
}
INLINE_HOST_DEVICE Floats float_of(Words bits) {
    return (Floats)bits;
}
INLINE_HOST_DEVICE Floats value_of(Words x) {
    return __builtin_convertvector((Ints)x, Floats);
}
INLINE_HOST_DEVICE Words integer_of(Floats x) {
    return (Words) __builtin_convertvector(x, Ints);
}
INLINE_HOST_DEVICE Words is_nan(Floats x) {
    return (Words)(x != x);
}

#if defined(__AVX512F__)
INLINE_HOST_DEVICE Longs product(Longs x, uint32_t m) {
    return (Longs)_mm512_maskz_mul_epu32(0xff, (__m512i)x, _mm512_set1_epi64(m));
}
#elif defined(__AVX2__)
INLINE_HOST_DEVICE Longs product(Longs x, uint32_t m) {
    return (Longs)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(m));
}
#elif defined(__x86_64__)
INLINE_HOST_DEVICE Longs product(Longs x, uint32_t m) {
    return (Longs)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(m));
}
#else
INLINE_HOST_DEVICE Longs product(Longs x, uint32_t m) {
    return (x & 0xffffffff) * m;
}
#endif

// The vectors in which elements of a type change places. As template arguments, vectors would lose their attributes.
template <class T>
struct InVectors;
template <>
struct InVectors<float> {
    static constexpr int n = kWidth;
    typedef Floats V;
};
template <>
struct InVectors<double> {
    static constexpr int n = kWidth / 2;
    typedef double V __attribute__((vector_size(n * sizeof(double)), aligned(sizeof(double)), may_alias));
};

// A square of elements in vectors, its rows.
template <class T>
struct Square {
    static constexpr int n = InVectors<T>::n;
    typename InVectors<T>::V rows[n];

    // Let rows and columns change places. The elements are dealt like cards, alternately from both halves of the deck.
    // Each time this turns the bits of their numbers by one place, and halfway round rows have become columns.
    INLINE_HOST_DEVICE void transpose() {
        for (int pass = 1; pass < n; pass *= 2) deal(std::make_integer_sequence<int, n>());
    }

private:
    template <int... i>
    INLINE_HOST_DEVICE void deal(std::integer_sequence<int, i...>) {
        const Square before = *this;
        for (int j = 0; j < n / 2; ++j) {
            const auto a = before.rows[j], b = before.rows[j + n / 2];
            rows[2 * j] = __builtin_shufflevector(a, b, (i / 2 + i % 2 * n)...);
            rows[2 * j + 1] = __builtin_shufflevector(a, b, (n / 2 + i / 2 + i % 2 * n)...);
        }
    }
};

}  // namespace
