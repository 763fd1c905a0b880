// Philox 4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"), and the random bits
// of stochastic rounding, which are made of it: they depend on seed, step, tensor, array and number of the element
// alone.
#pragma once

#include <stdint.h>

#include "rules/rule.h"
#include "step.h"

namespace {

// The product of m and the lower half of x, in all 64 bits.
INLINE_HOST_DEVICE constexpr uint64_t product(uint64_t x, uint32_t m) {
    return (x & 0xffffffff) * m;
}

// Turn a counter of four words into four words of random bits. A word is the lower half of a number of 64 bits; X is
// such a number, or a vector of them.
template <class X>
INLINE_HOST_DEVICE constexpr void philox(X (&x)[4], uint64_t key) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        X a = product(x[0], 0xD2511F53), b = product(x[2], 0xCD9E8D57);
        x[0] = (b >> 32) ^ x[1] ^ k0;
        x[1] = b;
        x[2] = (a >> 32) ^ x[3] ^ k1;
        x[3] = a;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
}

// Whether Philox makes two expected numbers of a counter and a key. Its authors have published the ones below.
constexpr bool philox_gives(uint64_t low, uint64_t high, uint64_t key, uint64_t first, uint64_t second) {
    uint64_t x[4] = {low >> 32, low, high >> 32, high};
    philox(x, key << 32 | key >> 32);
    auto joined = [](uint64_t a, uint64_t b) { return a << 32 | (b & 0xffffffff); };
    return joined(x[0], x[1]) == first && joined(x[2], x[3]) == second;
}
static_assert(philox_gives(0, 0, 0, 0x6627e8d5'e169c58d, 0xbc57ac4c'9b00dbd8));
static_assert(philox_gives(~0ull, ~0ull, ~0ull, 0x408f276d'41c83b0e, 0xa20bc7c6'6d5451fd));
static_assert(philox_gives(0x243f6a88'85a308d3, 0x13198a2e'03707344, 0xa4093822'299f31d0, 0xd16cfe09'94fdcceb,
                           0x5001e420'24126ea1));

// The number of an array among those of its tensor, in the random bits: 0 for the parameter, 2, 3, 4 and 6 for states,
// 5 for the average.
INLINE_HOST_DEVICE constexpr uint32_t noise_array(int role) {
    return role == fusedstep::kAverage ? 5 : role < 5 ? role : role + 1;
}
static_assert(noise_array(fusedstep::kStates + 2) == 4 && noise_array(fusedstep::kStates + 3) == 6);

// The key of the random bits of a tensor in its update number t.
INLINE_HOST_DEVICE uint64_t noise_key(uint64_t seed, uint64_t t, uint64_t tensor) {
    uint64_t x[4] = {t, t >> 32, tensor, tensor >> 32};
    philox(x, seed);
    return (x[0] & 0xffffffff) | x[1] << 32;
}

// An array has 16 random bits for each element, in tiles of 256 elements. A tile has 32 counters in a row; it begins
// with the first words of all 32, then come the second words, and so on. A word serves two elements, its lower half
// first.
constexpr int64_t kNoiseTile = 256;
constexpr int kCounters = kNoiseTile / 8;

}  // namespace
