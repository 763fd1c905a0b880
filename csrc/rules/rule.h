// The alphabet of the rules: operations whose bits IEEE 754 fixes, plus comparison and selection.
//
// A rule is a struct with these members; adam.h is the one to copy.
//   name          of the rule
//   states        names of its arrays, "m v", at most four
//   hypers        names of its hyperparameters, "lr beta1 beta2", `lr` first
//   Hyper         the hyperparameters as doubles, in the order of `hypers`
//   memory        names of the numbers that it keeps between steps, with a struct `Memory`; most rules have none
//   Scalars<T>    what `update` needs besides arrays, at most ten numbers
//   derive        Hyper -> Scalars<double>, once per step. derive(h); or derive(h, t), where the number t = 1, 2, ...
//                 of the update matters; or derive(h, t, memory), which begins the memory where t == 1
//   update        one element: takes scalars, gradient and states, writes the states, returns u of p := p - u
//
// What `update` writes and returns comes from arithmetic, which flushes subnormal floats; a number that is only moved
// gets
// + T(0). Instructions that narrow floats flush what they store, and the text of the same conversion does not.
//
// Everything is in an unnamed namespace, because each instruction set compiles its own copy.
#pragma once

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define INLINE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define INLINE_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace {

// x**n by squaring: always the same multiplications in the same order, while the pow of libm differs between libraries.
INLINE_HOST_DEVICE double power(double x, int64_t n) {
    double r = 1;
    while (n > 0) {
        if (n & 1) r = r * x;
        n >>= 1;
        if (n) x = x * x;
    }
    return r;
}

INLINE_HOST_DEVICE float root(float x) {
    return sqrtf(x);
}
INLINE_HOST_DEVICE double root(double x) {
    return sqrt(x);
}

INLINE_HOST_DEVICE float magnitude(float x) {
    return fabsf(x);
}
INLINE_HOST_DEVICE double magnitude(double x) {
    return fabs(x);
}

// The smallest number that counts as more than 0: subnormal floats are flushed.
INLINE_HOST_DEVICE constexpr float least(float) {
    return 0x1p-126f;
}
INLINE_HOST_DEVICE constexpr double least(double) {
    return 0x1p-1074;
}

// The larger or smaller of two numbers. NaN passes through, as in np.maximum; maxps, fmaxf and std::max each lose NaN
// in their own way. The comparison is of a + 0, lest a compiler use an instruction for maxima, which would flush a
// subnormal result.
template <class T>
INLINE_HOST_DEVICE T larger(T a, T b) {
    return a + T(0) > b || a != a ? a : b;
}

template <class T>
INLINE_HOST_DEVICE T smaller(T a, T b) {
    return a + T(0) < b || a != a ? a : b;
}

// min(max(x, low), high), for limits that are not NaN. NaN in x passes through.
template <class T>
INLINE_HOST_DEVICE T clipped(T x, T low, T high) {
    T above = x <= low ? low : x;
    return above >= high ? high : above;
}

// sign(x)*y for y >= 0, without the product: y, -y, +0 for both zeros, or NaN. The comparison is with the smallest
// normal number and not with 0, because ptxas drops the flush of a comparison that a branch guards.
template <class T>
INLINE_HOST_DEVICE T with_sign_of(T x, T y) {
    T s = x + T(0), positive = x >= least(x) ? y : s;
    return x <= -least(x) ? -y : positive;
}

// The number of words in "m v", which is how many states a rule has, or hyperparameters.
INLINE_HOST_DEVICE constexpr int words(const char* s) {
    int n = *s ? 1 : 0;
    for (; *s; ++s) n += *s == ' ';
    return n;
}

}  // namespace
