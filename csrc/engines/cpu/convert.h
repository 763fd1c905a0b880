// Vectors of halves and floats in memory, and the random bits of their rounding. Where an instruction set converts
// float16 itself, its instructions stand beside the text of storage.h.
#pragma once

// clang-format off: vectors first, or the texts of the others know of none
#include "engines/cpu/vector.h"
// clang-format on
#include "element/philox.h"
#include "step.h"
#include "storage/storage.h"

namespace {

using namespace fusedstep;

#if defined(__AVX512F__)
INLINE_HOST_DEVICE Floats from_float16(Halves h) {
    return (Floats)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h);
}
INLINE_HOST_DEVICE Halves to_float16(Floats x) {
    return (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__F16C__) && defined(__AVX2__)
INLINE_HOST_DEVICE Floats from_float16(Halves h) {
    return (Floats)_mm256_cvtph_ps((__m128i)h);
}
INLINE_HOST_DEVICE Halves to_float16(Floats x) {
    return (Halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
}
#else
INLINE_HOST_DEVICE Floats from_float16(Halves h) {
    return Float16::widened(widened(h));
}
INLINE_HOST_DEVICE Halves to_float16(Floats x) {
    return narrowed(Float16::nearest(x));
}
#endif

// Vectors in memory. A type that is no half is float32.

INLINE_HOST_DEVICE Floats floats(Type type, Halves h) {
    return type == kBFloat16 ? BFloat16::widened(widened(h)) : from_float16(h);
}
INLINE_HOST_DEVICE Halves halves(Type type, Floats x) {
    return type == kBFloat16 ? narrowed(BFloat16::nearest(x)) : to_float16(x);
}
INLINE_HOST_DEVICE Halves halves(Type type, Floats x, Halves noise) {
    Words n = widened(noise);
    return narrowed(type == kBFloat16 ? BFloat16::by_chance(x, n) : Float16::by_chance(x, n));
}

INLINE_HOST_DEVICE Floats floats_at(const void* memory) {
    return *static_cast<const Floats*>(memory);
}
INLINE_HOST_DEVICE Halves halves_at(const void* memory) {
    return *static_cast<const Halves*>(memory);
}
INLINE_HOST_DEVICE void put(Floats x, void* memory) {
    *static_cast<Floats*>(memory) = x;
}
INLINE_HOST_DEVICE void put(Halves h, void* memory) {
    *static_cast<Halves*>(memory) = h;
}

INLINE_HOST_DEVICE Floats load(Type type, const void* from) {
    return type == kFloat32 ? floats_at(from) : floats(type, halves_at(from));
}

// Noise is that of the vector, or null, where it is rounded to nearest.
INLINE_HOST_DEVICE void store(Type type, Floats x, void* to, const uint16_t* noise) {
    if (type == kFloat32)
        put(x, to);
    else
        put(noise ? halves(type, x, halves_at(noise)) : halves(type, x), to);
}

// A parameter and its master: the master, but the parameter where somebody has changed it since.
INLINE_HOST_DEVICE Floats load(const Types& types, const void* param, const void* master) {
    if (!types.has_master()) return load(types.param, param);
    Halves half = halves_at(param);
    if (types.master == kUInt16) return Split::joined(widened(half), widened(halves_at(master)));
    Floats exact = floats_at(master);
    return widened(halves(types.param, exact)) == widened(half) ? exact : floats(types.param, half);
}

INLINE_HOST_DEVICE void store(const Types& types, Floats x, void* param, void* master, const uint16_t* noise) {
    if (!types.has_master()) return store(types.param, x, param, noise);
    if (types.master == kUInt16) {
        put(narrowed(Split::high(x)), param);
        put(narrowed(Split::low(x)), master);
    } else {
        put(halves(types.param, x), param);
        put(x, master);
    }
}

// The random bits of the elements [kNoiseTile tile, kNoiseTile (tile + 1)) of an array of this role.
inline void fill_noise(uint64_t key, uint32_t role, int64_t tile, uint16_t* noise) {
    Longs counter = {};
    for (int i = 0; i < kWidth / 2; ++i) counter[i] = i;
    counter += static_cast<uint64_t>(tile) * kCounters;
    for (int first = 0; first < kCounters; first += kWidth / 2, counter += kWidth / 2) {
        Longs x[4] = {counter, counter >> 32, Longs() + role, Longs()};
        philox(x, key);
        for (int word = 0; word < 4; ++word)
            *reinterpret_cast<FewWords*>(noise + 2 * (word * kCounters + first)) =
                __builtin_convertvector(x[word], FewWords);
    }
}

}  // namespace
