// float16 (IEEE 754 binary16). Its subnormals are kept: they are normal numbers of float.
#pragma once

#include "storage/bits.h"

namespace {

struct Float16 {
    static constexpr uint32_t kNormal = 0x38800000;    // 2^-14, the smallest normal number
    static constexpr uint32_t kRebias = 0x38000000;    // added to bits of float16 to make the exponent that of float
    static constexpr uint32_t kTooLarge = 0x47800000;  // 2^16, from where on all is infinite

    template <class B>
    INLINE_HOST_DEVICE static constexpr auto widen(B h) {
        B magnitude = h & 0x7fff;
        B normal = (magnitude << 13) + (magnitude < 0x7c00 ? B() + kRebias : B() + 2 * kRebias);
        B subnormal = bits_of(value_of(magnitude) * 0x1p-24f);
        return float_of((magnitude < 0x400 ? subnormal : normal) | (h & 0x8000) << 16);
    }

    template <class F>
    INLINE_HOST_DEVICE static constexpr auto narrow(F x) {
        auto magnitude = bits_of(x) & 0x7fffffff;
        // The last bit of 0.5 is the unit of the subnormal numbers of float16, so an addition of 0.5 rounds to that
        // unit.
        auto subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
        return rounded(x, 0xfff + (magnitude >> 13 & 1), subnormal);
    }

    // Below 2^-14 more bits are cut off than there are random ones, so the probability to round up is exact to 2^-16.
    template <class F, class B>
    INLINE_HOST_DEVICE static constexpr B narrow(F x, B noise) {
        B magnitude = bits_of(x) & 0x7fffffff;
        B units = integer_of(float_of(magnitude < kNormal ? magnitude : B()) * 0x1p40f);
        return rounded(x, noise >> 3, (units + noise) >> 16);
    }

    // The bits of x in float16. Where x is normal there, `up` has been added to the bits that are cut off; where it is
    // not, they are `subnormal`.
    template <class F, class B>
    INLINE_HOST_DEVICE static constexpr B rounded(F x, B up, B subnormal) {
        B bits = bits_of(x), magnitude = bits & 0x7fffffff;
        B normal = (magnitude + up - kRebias) >> 13;
        B h = magnitude < kNormal ? subnormal : normal;
        h = magnitude >= kTooLarge ? B() + 0x7c00 : h;
        return h | (bits >> 16 & 0x8000) | is_nan(x) >> 16;
    }
};

static_assert(Float16::narrow(65519.0f) == 0x7bff && Float16::narrow(65520.0f) == 0x7c00);
static_assert(Float16::narrow(0x1p-25f) == 0 && Float16::narrow(-0x3p-25f) == 0x8002);
static_assert(Float16::narrow(0x1p-25f, 0x7fffu) == 0 && Float16::narrow(0x1p-25f, 0x8000u) == 1);
static_assert(Float16::widen(1u) == 0x1p-24f && Float16::widen(0xfbffu) == -65504);

}  // namespace
