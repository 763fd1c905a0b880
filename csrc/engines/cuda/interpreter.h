// The accumulator machine on a GPU. Each lane runs the program of a rule on the elements that it holds, and all lanes
// of a warp take the same way through it. The accumulator is in registers, the registers of the machine are in the
// memory that a block shares.
#pragma once

#include "engines/cuda/compiler.h"
#include "engines/cuda/table.h"
#include "programs/instructions.h"

namespace {

using namespace fusedstep;
using namespace fusedstep::cuda;

// What the texts of the steps are made of, for single elements; `root`, `larger` and `smaller` are those of rules. A
// condition is an element with ones or zeros in all its bits.
namespace interpreter {

INLINE_HOST_DEVICE uint32_t bits(float x) {
    return __builtin_bit_cast(uint32_t, x);
}
INLINE_HOST_DEVICE uint64_t bits(double x) {
    return __builtin_bit_cast(uint64_t, x);
}
INLINE_HOST_DEVICE float element(uint32_t bits) {
    return __builtin_bit_cast(float, bits);
}
INLINE_HOST_DEVICE double element(uint64_t bits) {
    return __builtin_bit_cast(double, bits);
}

template <class T>
INLINE_HOST_DEVICE T negative(T a) {
    return element(bits(a) ^ bits(T(-0.0)));
}
template <class T>
INLINE_HOST_DEVICE T magnitude(T a) {
    return element(bits(a) & ~bits(T(-0.0)));
}
template <class T>
INLINE_HOST_DEVICE T sign_of(T a) {
    return with_sign_of(a, T(1));
}
template <class T>
INLINE_HOST_DEVICE T condition(bool is_true) {
    return element(is_true ? ~bits(T(0)) : bits(T(0)));
}
// Comparisons add 0 to both sides first, which flushes subnormal floats: ptxas drops the flush of some comparisons.
template <class T>
INLINE_HOST_DEVICE T less(T a, T b) {
    return condition<T>(a + T(0) < b + T(0));
}
template <class T>
INLINE_HOST_DEVICE T at_most(T a, T b) {
    return condition<T>(a + T(0) <= b + T(0));
}
template <class T>
INLINE_HOST_DEVICE T equal(T a, T b) {
    return condition<T>(a + T(0) == b + T(0));
}
template <class T>
INLINE_HOST_DEVICE T nonzero(T k) {
    return condition<T>(k + T(0) != T(0));
}
template <class T>
INLINE_HOST_DEVICE T both(T a, T b) {
    return element(bits(a) & bits(b));
}
template <class T>
INLINE_HOST_DEVICE T either(T a, T b) {
    return element(bits(a) | bits(b));
}
template <class T>
INLINE_HOST_DEVICE T inverse(T a) {
    return element(~bits(a));
}
template <class T>
INLINE_HOST_DEVICE T select(T a, T x, T y) {
    return bits(a) ? x : y;
}

// The elements in a register of a lane.
template <class T>
struct alignas(kRegisterBytes) Register {
    T x[kRegisterBytes / sizeof(T)];
};

// The memory that a launch asks for has the code of the program first. Behind it stands register 0 of every thread of
// the block, then register 1 of every thread, and so on.
INLINE_HOST_DEVICE Instruction* code() {
    return static_cast<Instruction*>(launched_memory());
}
template <class T>
INLINE_HOST_DEVICE Register<T>& at(int i) {
    auto* const first = reinterpret_cast<Register<T>*>(code() + kMaxInstructions);
    return first[i * kMadeThreads + threadIdx.x];
}

// Run the code with these scalars on the first n elements of the registers of this lane. The function is large, so it
// is not inlined.
template <int n, class T>
__host__ __device__ __noinline__ void run(const T* scalars) {
    T all[n] = {};
#pragma unroll 1
    for (const Instruction* step = code();; ++step) {
        const Instruction now = *step;
        switch (now.what) {
#define CASE(Name, ...)                                                                \
    case Do::k##Name: {                                                                \
        [[maybe_unused]] const T k = scalars[now.k], q = scalars[now.q];               \
        [[maybe_unused]] const Register<T> all_x = at<T>(now.x), all_y = at<T>(now.y); \
        _Pragma("unroll") for (int i = 0; i < n; ++i) {                                \
            [[maybe_unused]] const T a = all[i], x = all_x.x[i], y = all_y.x[i];       \
            all[i] = __VA_ARGS__;                                                      \
        }                                                                              \
        break;                                                                         \
    }
            FUSEDSTEP_INSTRUCTIONS(CASE)
#undef CASE
            case Do::kStore:
#pragma unroll
                for (int i = 0; i < n; ++i) at<T>(now.x).x[i] = all[i];
                break;
            case Do::kEnd:
                return;
            default:
                __builtin_unreachable();
        }
    }
}

}  // namespace interpreter
}  // namespace
