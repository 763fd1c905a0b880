// How float16 and bfloat16 are loaded into float and stored from it: to nearest, ties to even, or up or down by chance.
// Subnormals of float16 are kept, those of bfloat16 are float's; what is too large becomes infinite, NaN stays NaN.
// Each conversion is one text, for a number (B is uint32_t) and for a vector of them (cpu/vector.h); a half is a B
// below 2^16.
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

// Numbers below 2^31 as floats, and the other way, towards zero.
INLINE_HOST_DEVICE constexpr float value_of(uint32_t x) {
    return static_cast<float>(static_cast<int32_t>(x));
}
INLINE_HOST_DEVICE constexpr uint32_t integer_of(float x) {
    return static_cast<uint32_t>(static_cast<int32_t>(x));
}

// All bits, or none.
INLINE_HOST_DEVICE constexpr uint32_t is_nan(float x) {
    return x != x ? ~0u : 0;
}

struct BFloat16 {
    template <class B>
    INLINE_HOST_DEVICE static constexpr auto widened(B h) {
        return float_of(h << 16);
    }

    template <class F>
    INLINE_HOST_DEVICE static constexpr auto nearest(F x) {
        return rounded(x, 0x7fff + (bits_of(x) >> 16 & 1));
    }

    // Up with the probability that leaves the mean where it was, exactly; `noise` has 16 random bits.
    template <class F, class B>
    INLINE_HOST_DEVICE static constexpr B by_chance(F x, B noise) {
        return rounded(x, noise);
    }

    template <class F, class B>
    INLINE_HOST_DEVICE static constexpr B rounded(F x, B up) {
        return (is_nan(x) | (bits_of(x) + up)) >> 16;
    }
};

struct Float16 {
    static constexpr uint32_t kNormal = 0x38800000;    // 2^-14, the smallest normal number
    static constexpr uint32_t kRebias = 0x38000000;    // from the exponents of float16 to those of float
    static constexpr uint32_t kTooLarge = 0x47800000;  // 2^16

    template <class B>
    INLINE_HOST_DEVICE static constexpr auto widened(B h) {
        B magnitude = h & 0x7fff;
        B normal = (magnitude << 13) + (magnitude < 0x7c00 ? B() + kRebias : B() + 2 * kRebias);
        B subnormal = bits_of(value_of(magnitude) * 0x1p-24f);
        return float_of((magnitude < 0x400 ? subnormal : normal) | (h & 0x8000) << 16);
    }

    template <class F>
    INLINE_HOST_DEVICE static constexpr auto nearest(F x) {
        auto magnitude = bits_of(x) & 0x7fffffff;
        // The last bit of 0.5 is the unit of subnormals: to add it is to round.
        auto subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
        return rounded(x, 0xfff + (magnitude >> 13 & 1), subnormal);
    }

    // As for bfloat16; below 2^-14, where more bits are lost than there are random ones, exact to 2^-16 of a unit.
    template <class F, class B>
    INLINE_HOST_DEVICE static constexpr B by_chance(F x, B noise) {
        B magnitude = bits_of(x) & 0x7fffffff;
        B units = integer_of(float_of(magnitude < kNormal ? magnitude : B()) * 0x1p40f);
        return rounded(x, noise >> 3, (units + noise) >> 16);
    }

    template <class F, class B>
    INLINE_HOST_DEVICE static constexpr B rounded(F x, B up, B subnormal) {
        B bits = bits_of(x), magnitude = bits & 0x7fffffff;
        B normal = (magnitude + up - kRebias) >> 13;
        B h = magnitude < kNormal ? subnormal : normal;
        h = magnitude >= kTooLarge ? B() + 0x7c00 : h;
        return h | (bits >> 16 & 0x8000) | is_nan(x) >> 16;
    }
};

// A bfloat16 parameter and the 16 bits that it lacks are a float, exactly. The parameter is the nearest bfloat16, away
// from zero in a tie: of the floats that rounding to even would make one number, there are one too many for 16 bits.
struct Split {
    template <class F>
    INLINE_HOST_DEVICE static constexpr auto high(F x) {
        auto bits = bits_of(x);
        return BFloat16::rounded(x, bits - bits + 0x8000);
    }

    template <class F>
    INLINE_HOST_DEVICE static constexpr auto low(F x) {
        auto bits = bits_of(x);
        return x != x ? bits - bits : bits & 0xffff;
    }

    template <class B>
    INLINE_HOST_DEVICE static constexpr auto joined(B high, B low) {
        B magnitude = high & 0x7fff, bits = (high - (low >> 15)) << 16 | low;
        // A zero or an infinity that was not split, but set by somebody, has no such remainder.
        bits = magnitude == 0 ? (low < 0x8000 ? bits : high << 16) : bits;
        bits = magnitude == 0x7f80 ? (low < 0x8000 ? high << 16 : bits) : bits;
        return float_of(bits);
    }
};

// What the texts say of single numbers.
static_assert(BFloat16::nearest(1 + 0x1p-8f) == 0x3f80 && BFloat16::nearest(1 + 0x3p-8f) == 0x3f82);  // ties, to even
static_assert(BFloat16::nearest(0x1.fffffep127f) == 0x7f80 && BFloat16::nearest(-0.0f) == 0x8000);
static_assert(BFloat16::by_chance(1.0f, 0xffffu) == 0x3f80 && BFloat16::by_chance(1 + 0x1p-23f, 0xffffu) == 0x3f81);
static_assert(Float16::nearest(65519.0f) == 0x7bff && Float16::nearest(65520.0f) == 0x7c00);
static_assert(Float16::nearest(0x1p-25f) == 0 && Float16::nearest(-0x3p-25f) == 0x8002);
static_assert(Float16::by_chance(0x1p-25f, 0x7fffu) == 0 && Float16::by_chance(0x1p-25f, 0x8000u) == 1);
static_assert(Float16::widened(1u) == 0x1p-24f && Float16::widened(0xfbffu) == -65504);
static_assert(Split::high(1 + 0x1p-8f) == 0x3f81 && Split::low(1 + 0x1p-8f) == 0x8000);  // a tie, away from zero
static_assert(Split::joined(0x3f81u, 0x8000u) == 1 + 0x1p-8f);

}  // namespace
