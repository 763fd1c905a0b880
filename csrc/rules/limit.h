// LimitN, a yardstick and no optimizer: the memory traffic of a rule with N states, and almost no arithmetic.
#pragma once
#include "rules/sgd.h"

namespace {

struct Limit : SGD {
    static constexpr bool is_yardstick = true;

    template <class T, class... State>
    INLINE_HOST_DEVICE static T update(const Scalars<T>&, T g, State&... s) {
        ((s = -s), ...);
        return g;
    }
};

struct Limit0 : Limit {
    static constexpr char name[] = "limit0";
};
struct Limit1 : Limit {
    static constexpr char name[] = "limit1";
    static constexpr char states[] = "a";
};
struct Limit2 : Limit {
    static constexpr char name[] = "limit2";
    static constexpr char states[] = "a b";
};
struct Limit3 : Limit {
    static constexpr char name[] = "limit3";
    static constexpr char states[] = "a b c";
};
struct Limit4 : Limit {
    static constexpr char name[] = "limit4";
    static constexpr char states[] = "a b c d";
};

}  // namespace
