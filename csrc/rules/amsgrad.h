// AMSGrad (Reddi, Kale & Kumar 2018, Algorithm 2): Adam with w, the largest uncorrected v
// so far, in place of v. The sum w + 0 flushes a subnormal w: nothing that a rule stores is subnormal in float32.
#pragma once
#include "rules/adam.h"

namespace {

struct AMSGrad : Adam {
    static constexpr char name[] = "amsgrad";
    static constexpr char states[] = "m v w";

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& m, T& v, T& w) {
        m = k.beta1 * m + k.one_minus_beta1 * g;
        v = k.beta2 * v + k.one_minus_beta2 * (g * g);
        w = larger(w + T(0), v);
        return (k.step_size * m) / (root(w + k.eps_inside) + k.eps_outside);
    }
};

}  // namespace
