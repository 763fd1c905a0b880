// Vectors of floats, loaded from memory of any type and stored into it, and the random bits of their rounding.
#pragma once

// clang-format off: the vectors come first, or the conversions would know of none
#include "engines/cpu/vector.h"
// clang-format on
#include "element/philox.h"
#include "step.h"
#include "storage/all.h"

namespace {

using namespace fusedstep;

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

// Words of 32 bits, read from and written to elements of another type. For elements of 16 bits, there are better
// instructions than those that compilers choose.
template <class Word>
INLINE_HOST_DEVICE Words words_at(const Word* memory) {
    typedef Word Vector __attribute__((vector_size(kWidth * sizeof(Word)), aligned(sizeof(Word)), may_alias));
    return __builtin_convertvector(*reinterpret_cast<const Vector*>(memory), Words);
}
template <class Word>
INLINE_HOST_DEVICE void put_words(Words words, Word* memory) {
    typedef Word Vector __attribute__((vector_size(kWidth * sizeof(Word)), aligned(sizeof(Word)), may_alias));
    *reinterpret_cast<Vector*>(memory) = __builtin_convertvector(words, Vector);
}
INLINE_HOST_DEVICE Words words_at(const uint16_t* memory) {
    return widened(halves_at(memory));
}
INLINE_HOST_DEVICE void put_words(Words words, uint16_t* memory) {
    put(narrowed(words), memory);
}

// Instructions that convert float16, where an instruction set has them. They agree with storage/float16.h on all bits
// but those of NaN.
#if defined(__AVX512F__)
constexpr bool kConvertsFloat16 = true;
INLINE_HOST_DEVICE Floats from_float16(Halves h) {
    return (Floats)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h);
}
INLINE_HOST_DEVICE Halves to_float16(Floats x) {
    return (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__F16C__) && defined(__AVX2__)
constexpr bool kConvertsFloat16 = true;
INLINE_HOST_DEVICE Floats from_float16(Halves h) {
    return (Floats)_mm256_cvtph_ps((__m128i)h);
}
INLINE_HOST_DEVICE Halves to_float16(Floats x) {
    return (Halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
}
#else
constexpr bool kConvertsFloat16 = false;
template <class H>
Floats from_float16(H);
template <class F>
Halves to_float16(F);
#endif

// An instruction that narrows to bfloat16. It agrees with storage/bfloat16.h on all bits but those of NaN, whatever the
// floating-point mode.
#if defined(__AVX512BF16__)
constexpr bool kConvertsBFloat16 = true;
INLINE_HOST_DEVICE Halves to_bfloat16(Floats x) {
    return (Halves)_mm512_cvtneps_pbh((__m512)x);
}
#else
constexpr bool kConvertsBFloat16 = false;
template <class F>
Halves to_bfloat16(F);
#endif

// Conversions of a vector, which is the tile of a CPU, by the trait of a storage type.

template <class Storage>
constexpr bool kByInstruction =
    (kConvertsFloat16 && Storage::type == kFloat16) || (kConvertsBFloat16 && Storage::type == kBFloat16);

template <class Storage>
INLINE_HOST_DEVICE Halves narrow_by_instruction(Floats x) {
    if constexpr (Storage::type == kFloat16)
        return to_float16(x);
    else
        return to_bfloat16(x);
}

template <class Storage>
INLINE_HOST_DEVICE Floats widen(Storage, const void* memory) {
    if constexpr (kConvertsFloat16 && Storage::type == kFloat16)
        return from_float16(halves_at(memory));
    else
        return Storage::widen(words_at(static_cast<const typename Storage::Word*>(memory)));
}

template <class Storage>
INLINE_HOST_DEVICE Words narrow(Storage, Floats x) {
    if constexpr (kByInstruction<Storage>)
        return widened(narrow_by_instruction<Storage>(x));
    else
        return Storage::narrow(x);
}

// Narrow a vector into memory: to nearest, or with the random bits at `noise`.
template <class Storage>
INLINE_HOST_DEVICE void narrow(Storage storage, Floats x, void* memory, const uint16_t* noise) {
    auto to = static_cast<typename Storage::Word*>(memory);
    if (noise)
        put_words(Storage::narrow(x, words_at(noise)), to);
    else if constexpr (kByInstruction<Storage>)
        put(narrow_by_instruction<Storage>(x), memory);
    else
        put_words(narrow(storage, x), to);
}

INLINE_HOST_DEVICE Floats load(Type type, const void* from) {
    if (type == kFloat32) return floats_at(from);
    return with_narrow(type, [&](auto storage) INLINE_LAMBDA { return widen(storage, from); });
}

INLINE_HOST_DEVICE void store(Type type, Floats x, void* to, const uint16_t* noise) {
    if (type == kFloat32)
        put(x, to);
    else
        with_narrow(type, [&](auto storage) INLINE_LAMBDA { narrow(storage, x, to, noise); });
}

// A parameter with a master counts as its master, unless somebody has written to the parameter since.
INLINE_HOST_DEVICE Floats load(const Types& types, const void* param, const void* master) {
    if (!types.has_master()) return load(types.param, param);
    if (types.master == kUInt16) return Split::joined(widened(halves_at(param)), widened(halves_at(master)));
    Floats exact = floats_at(master);
    return with_narrow(types.param, [&](auto storage) INLINE_LAMBDA {
        using Word = typename decltype(storage)::Word;
        Words words = words_at(static_cast<const Word*>(param));
        return narrow(storage, exact) == words ? exact : widen(storage, param);
    });
}

INLINE_HOST_DEVICE void store(const Types& types, Floats x, void* param, void* master, const uint16_t* noise) {
    if (!types.has_master()) return store(types.param, x, param, noise);
    if (types.master == kUInt16) {
        put(narrowed(Split::high(x)), param);
        put(narrowed(Split::low(x)), master);
    } else {
        store(types.param, x, param, nullptr);
        put(x, master);
    }
}

// The random bits of the elements [kNoiseTile tile, kNoiseTile (tile + 1)) of an array.
inline void fill_noise(uint64_t key, uint32_t array, int64_t tile, uint16_t* noise) {
    Longs counter = {};
    for (int i = 0; i < kWidth / 2; ++i) counter[i] = i;
    counter += static_cast<uint64_t>(tile) * kCounters;
    for (int first = 0; first < kCounters; first += kWidth / 2, counter += kWidth / 2) {
        Longs x[4] = {counter, counter >> 32, Longs() + array, Longs()};
        philox(x, key);
        for (int word = 0; word < 4; ++word)
            *reinterpret_cast<FewWords*>(noise + 2 * (word * kCounters + first)) =
                __builtin_convertvector(x[word], FewWords);
    }
}

}  // namespace
