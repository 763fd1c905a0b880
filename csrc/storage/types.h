// The types that arrays may have. A new narrow type needs a line here and a header beside this one.
#pragma once

#include <stddef.h>
#include <stdint.h>

// X(struct, name of the dtype, type of an element in memory). The narrow types hold what is computed in float: the
// struct converts between the two. A bfloat16 parameter may keep the 16 bits that it lacks as uint16; see split.h.
#define FUSEDSTEP_NARROW(X)           \
    X(BFloat16, "bfloat16", uint16_t) \
    X(Float16, "float16", uint16_t)
#define FUSEDSTEP_TYPES(X)        \
    X(Float32, "float32", float)  \
    X(Float64, "float64", double) \
    FUSEDSTEP_NARROW(X)           \
    X(UInt16, "uint16", uint16_t)

namespace fusedstep {

#define FUSEDSTEP_ENUMERATOR(Storage, name, Word) k##Storage,
enum Type : int8_t { FUSEDSTEP_TYPES(FUSEDSTEP_ENUMERATOR) kTypes };
#undef FUSEDSTEP_ENUMERATOR

#define FUSEDSTEP_SIZE(Storage, name, Word) sizeof(Word),
constexpr int64_t kItemSize[kTypes + 1] = {FUSEDSTEP_TYPES(FUSEDSTEP_SIZE) 0};
#undef FUSEDSTEP_SIZE

// A set of types.
using TypeSet = unsigned;
template <class... T>
constexpr TypeSet set_of(T... types) {
    return (0u | ... | (1u << types));
}
#define FUSEDSTEP_BIT(Storage, name, Word) | set_of(k##Storage)
constexpr TypeSet kNarrow = 0u FUSEDSTEP_NARROW(FUSEDSTEP_BIT);
#undef FUSEDSTEP_BIT
constexpr TypeSet kFloats = kNarrow | set_of(kFloat32, kFloat64);
constexpr bool contains(TypeSet set, Type type) {
    return set >> type & 1;
}

}  // namespace fusedstep
