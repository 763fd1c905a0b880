// The numbers of a program, derived once per step in double, on the host and on GPUs.
#pragma once

#include "element/around.h"
#include "programs/program.h"

namespace {

using namespace fusedstep;

// sign(x) is 1, -1, +0 for both zeros, or NaN.
INLINE_HOST_DEVICE double sign_of(double x) {
    return with_sign_of(x, 1.0);
}

// x**n, or NaN where n is no whole number of at least 0.
INLINE_HOST_DEVICE double whole_power(double x, double n) {
    const bool is_fine = n >= 0 && n < 0x1p53 && static_cast<double>(static_cast<int64_t>(n)) == n;
    return is_fine ? power(x, static_cast<int64_t>(n)) : NAN;
}

INLINE_HOST_DEVICE double result_of(Op op, double a, double b, double c) {
    switch (op) {
        case Op::kAdd:
            return a + b;
        case Op::kSubtract:
            return a - b;
        case Op::kMultiply:
            return a * b;
        case Op::kDivide:
            return a / b;
        case Op::kRoot:
            return root(a);
        case Op::kNegative:
            return -a;
        case Op::kMagnitude:
            return magnitude(a);
        case Op::kSign:
            return sign_of(a);
        case Op::kLarger:
            return larger(a, b);
        case Op::kSmaller:
            return smaller(a, b);
        case Op::kLess:
            return a < b;
        case Op::kAtMost:
            return a <= b;
        case Op::kEqual:
            return a == b;
        case Op::kBoth:
            return a != 0 && b != 0;
        case Op::kEither:
            return a != 0 || b != 0;
        case Op::kNot:
            return a == 0;
        case Op::kSelect:
            return a != 0 ? b : c;
        case Op::kPower:
            return whole_power(a, b);
        default:
            return 0;
    }
}

// Derive the scalars of update number t from the hyperparameters, and let the memory become what it is after it.
INLINE_HOST_DEVICE void derive(const Numbers& numbers, const double* hypers, int64_t t, double* memory,
                               double* scalars) {
    double all[kMaxNumbers];
    double* next = all;
    for (int i = 0; i < numbers.hyper_count; ++i) *next++ = hypers[i];
    *next++ = static_cast<double>(t);
    for (int i = 0; i < numbers.memory_count; ++i) *next++ = t == 1 ? numbers.memory_start[i] : memory[i];
    for (int i = 0; i < numbers.constant_count; ++i) *next++ = numbers.constants[i];
    for (int i = 0; i < numbers.operation_count; ++i) {
        const Operation& operation = numbers.operations[i];
        const int16_t* x = operation.operands;
        *next++ = result_of(operation.op, all[x[0]], all[x[1]], all[x[2]]);
    }
    for (int i = 0; i < numbers.memory_count; ++i) memory[i] = all[numbers.memory[i]];
    for (int i = 0; i < numbers.scalar_count; ++i) scalars[i] = all[numbers.scalars[i]];
}

// Advance a clock by one update and derive its scalars from a row of hyperparameters. Without a learning rate,
// decoupled decay has the factor 1.
INLINE_HOST_DEVICE void derive(const Numbers& numbers, bool has_lr, const double* hypers, Clock& clock,
                               Derived& derived) {
    ++clock.t;
    derive(numbers, hypers, clock.t, clock.memory, derived.float64);
    for (int i = 0; i < numbers.scalar_count; ++i) derived.float32[i] = rounded(derived.float64[i]);
    const auto& around = *reinterpret_cast<const Around::Hyper*>(hypers + numbers.hyper_count);
    Around::derive(around, has_lr ? hypers[0] : 1, clock, derived);
}

}  // namespace
