// The operations of which conversions between float and a narrow type are made. Each conversion is one text for
// numbers and for vectors: F is float or a vector of floats, B is uint32_t or a vector of as many. engines/cpu/vector.h
// has these functions for vectors, and must be included before a header that converts.
#pragma once

#include <stdint.h>

#include "rules/rule.h"

namespace {

INLINE_HOST_DEVICE constexpr uint32_t bits_of(float x) {
    return __builtin_bit_cast(uint32_t, x);
}
INLINE_HOST_DEVICE constexpr float float_of(uint32_t bits) {
    return __builtin_bit_cast(float, bits);
}

// An integer below 2^31 as a float.
INLINE_HOST_DEVICE constexpr float value_of(uint32_t x) {
    return static_cast<float>(static_cast<int32_t>(x));
}
// A float below 2^31 as an integer, rounded towards zero.
INLINE_HOST_DEVICE constexpr uint32_t integer_of(float x) {
    return static_cast<uint32_t>(static_cast<int32_t>(x));
}

// x, or zero of its sign where x is subnormal.
template <class F>
INLINE_HOST_DEVICE constexpr F flushed(F x) {
    auto bits = bits_of(x);
    return float_of((bits & 0x7f800000) == 0 ? bits & 0x80000000 : bits);
}

// All bits where x is NaN, else none.
INLINE_HOST_DEVICE constexpr uint32_t is_nan(float x) {
    return x != x ? ~0u : 0;
}

}  // namespace
