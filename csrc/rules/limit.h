// Not optimizers but the yardstick beside them: the traffic of a rule with N states and no arithmetic to speak of.
#pragma once
#include "rules/sgd.h"

namespace {

struct Limit : SGD {
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

}  // namespace
