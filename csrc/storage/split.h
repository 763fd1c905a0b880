// A float in two pieces: a bfloat16 parameter, and a remainder of 16 bits, both exact.
#pragma once

#include "storage/bfloat16.h"

namespace {

// The parameter is the nearest bfloat16, away from zero in a tie. A tie to even would not do: one floating-point number
// too many would round to the same even bfloat16 for 16 bits to tell them apart.
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
        // A zero that comes from a split has a remainder below 0x8000; an infinity has 0, or one from 0x8000 on. Any
        // other remainder is left over from before the caller set the parameter to zero or infinity: it does not count.
        bits = magnitude == 0 ? (low < 0x8000 ? bits : high << 16) : bits;
        bits = magnitude == 0x7f80 ? (low < 0x8000 ? high << 16 : bits) : bits;
        return float_of(bits);
    }
};

static_assert(Split::high(1 + 0x1p-8f) == 0x3f81 && Split::low(1 + 0x1p-8f) == 0x8000);  // a tie, away from zero
static_assert(Split::joined(0x3f81u, 0x8000u) == 1 + 0x1p-8f);

}  // namespace
