// How the narrow types are converted to and from float: each type is a trait, chosen by `with_narrow`.
//
// A trait converts tiles. A tile is the run of neighbouring elements that an engine holds in registers at once: one
// number on a GPU, a vector on a CPU. With B for the words of a tile, zero-extended to 32 bits, and F for its floats,
// it has
//   widen(B) -> F             what the words stand for, exactly
//   narrow(F) -> B            rounded to nearest, ties to even; what is too large becomes infinite, NaN stays NaN
//   narrow(F, B noise) -> B   rounded up or down by 16 random bits, so that the mean stays where it was
// A type whose elements share a scale would take the elements of one scale as its tile, and the scale as an argument.
#pragma once

#include "storage/bfloat16.h"
#include "storage/float16.h"
#include "storage/split.h"
#include "storage/types.h"

namespace {

// A function object that GCC and Clang inline wherever it is called, as the loops need it; nvcc inlines by itself.
#ifdef __CUDACC__
#define INLINE_LAMBDA
#else
#define INLINE_LAMBDA __attribute__((always_inline))
#endif

// A trait, and the type of an element in memory.
template <class Trait, class WordInMemory, fusedstep::Type kWhich>
struct Stored : Trait {
    using Word = WordInMemory;
    static constexpr fusedstep::Type type = kWhich;
};

template <class First, class... Rest>
struct Choice {
    template <class F>
    INLINE_HOST_DEVICE static auto with(fusedstep::Type type, F f) {
        if constexpr (sizeof...(Rest) == 0)
            return f(First());
        else
            return type == First::type ? f(First()) : Choice<Rest...>::with(type, f);
    }

    // The same for the type of a word, without a choice as far as all types have words of one size.
    template <class F>
    INLINE_HOST_DEVICE static auto with_word(fusedstep::Type type, F f) {
        if constexpr (((sizeof(typename First::Word) == sizeof(typename Rest::Word)) && ...))
            return f(typename First::Word());
        else
            return type == First::type ? f(typename First::Word()) : Choice<Rest...>::with_word(type, f);
    }
};

// The traits of FUSEDSTEP_NARROW. Each comes with a comma before it, so `void` stands before the first one.
template <class, class... Narrow>
using ChoiceAfter = Choice<Narrow...>;
#define FUSEDSTEP_STORED(Storage, name, Word) , Stored<Storage, Word, fusedstep::k##Storage>
using NarrowChoice = ChoiceAfter<void FUSEDSTEP_NARROW(FUSEDSTEP_STORED)>;
#undef FUSEDSTEP_STORED

// Call f(trait) with the trait of a narrow type, or f(word) with any word of it, and return what f returns.
template <class F>
INLINE_HOST_DEVICE auto with_narrow(fusedstep::Type type, F f) {
    return NarrowChoice::with(type, f);
}
template <class F>
INLINE_HOST_DEVICE auto with_word(fusedstep::Type type, F f) {
    return NarrowChoice::with_word(type, f);
}

}  // namespace
