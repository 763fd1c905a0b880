// The alphabet of the rules: operations whose bits IEEE 754 fixes, plus comparison and selection.
// A rule is a struct with `name`, `states`, `hypers`, `Hyper`, `Scalars<T>`, `derive` and `update`; see CONTRIBUTING.
// Everything is in an unnamed namespace, because each instruction set compiles its own copy.
#pragma once

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define RULE __host__ __device__ __forceinline__
#else
#define RULE inline __attribute__((always_inline))
#endif

namespace {

// x**n by squaring, always these multiplications in this order: libm's pow differs between libraries.
RULE double power(double x, int64_t n) {
    double r = 1;
    while (n > 0) {
        if (n & 1) r = r * x;
        n >>= 1;
        if (n) x = x * x;
    }
    return r;
}

RULE float root(float x) {
    return sqrtf(x);
}
RULE double root(double x) {
    return sqrt(x);
}

RULE float magnitude(float x) {
    return fabsf(x);
}
RULE double magnitude(double x) {
    return fabs(x);
}

// The smallest number that counts as more than 0: subnormal floats are flushed.
RULE constexpr float least(float) {
    return 0x1p-126f;
}
RULE constexpr double least(double) {
    return 0x1p-1074;
}

// NaN passes through, as in np.maximum; maxps, fmaxf and std::max each lose it in their own way. What is selected keeps
// its bits: compared is a + 0, lest a compiler make a maxss of it, which flushes subnormals.
template <class T>
RULE T larger(T a, T b) {
    return a + T(0) > b || a != a ? a : b;
}

// min(max(x, -limit), limit) for a limit that is not NaN, with the same care.
template <class T>
RULE T clipped(T x, T limit) {
    T above = x <= -limit ? -limit : x;
    return above >= limit ? limit : above;
}

// sign(x)*y for y >= 0, without the product: y, -y, +0 for both zeros, or NaN. Not compared with 0: where a branch
// guards the comparison, ptxas drops its flush.
template <class T>
RULE T with_sign_of(T x, T y) {
    T s = x + T(0), positive = x >= least(x) ? y : s;
    return x <= -least(x) ? -y : positive;
}

// The number of words in "m v": how many states or hyperparameters a rule has.
RULE constexpr int words(const char* s) {
    int n = *s ? 1 : 0;
    for (; *s; ++s) n += *s == ' ';
    return n;
}

}  // namespace
