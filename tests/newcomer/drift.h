// Drift, an optimizer of the tests alone. m = beta1 m + (1 - beta1) g, v = max(beta2 v, |g|), u = step m / (v + eps).
#pragma once
#include "rules/rule.h"

namespace {

struct Drift {
    static constexpr char name[] = "drift";
    static constexpr char states[] = "m v";
    static constexpr char hypers[] = "lr beta1 beta2 eps";
    struct Hyper {
        double lr, beta1, beta2, eps;
    };
    template <class T>
    struct Scalars {
        T beta1, one_minus_beta1, beta2, step_size, eps;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h, int64_t t) {
        return {h.beta1, 1 - h.beta1, h.beta2, h.lr / (1 - power(h.beta1, t)), h.eps};
    }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& m, T& v) {
        m = k.beta1 * m + k.one_minus_beta1 * g;
        v = larger(k.beta2 * v, magnitude(g));
        return (k.step_size * m) / (v + k.eps);
    }
};

}  // namespace
