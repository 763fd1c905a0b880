// bfloat16: the upper half of a float. Its subnormals are subnormals of float, and count as zero in arithmetic; none is
// written, since arithmetic has flushed what is narrowed.
#pragma once

#include "storage/bits.h"

namespace {

struct BFloat16 {
    template <class B>
    INLINE_HOST_DEVICE static constexpr auto widen(B h) {
        return float_of(h << 16);
    }

    template <class F>
    INLINE_HOST_DEVICE static constexpr auto narrow(F x) {
        return rounded(x, 0x7fff + (bits_of(x) >> 16 & 1));
    }

    template <class F, class B>
    INLINE_HOST_DEVICE static constexpr B narrow(F x, B noise) {
        return rounded(x, noise);
    }

    // The upper half of x, after `up` has been added to its lower half.
    template <class F, class B>
    INLINE_HOST_DEVICE static constexpr B rounded(F x, B up) {
        return (is_nan(x) | (bits_of(x) + up)) >> 16;
    }
};

static_assert(BFloat16::narrow(1 + 0x1p-8f) == 0x3f80 && BFloat16::narrow(1 + 0x3p-8f) == 0x3f82);  // ties, to even
static_assert(BFloat16::narrow(0x1.fffffep127f) == 0x7f80 && BFloat16::narrow(-0.0f) == 0x8000);
static_assert(BFloat16::narrow(1.0f, 0xffffu) == 0x3f80 && BFloat16::narrow(1 + 0x1p-23f, 0xffffu) == 0x3f81);

}  // namespace
