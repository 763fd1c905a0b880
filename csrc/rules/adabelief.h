// AdaBelief (Zhuang et al. 2020, Algorithm 2). m = beta1 m + (1 - beta1) g, s = beta2 s + (1 - beta2) (g - m)^2 + eps,
// u = step m / (sqrt(s) + outside): Adam's step, divided by how far gradients are from their mean.
#pragma once
#include "rules/rule.h"

namespace {

struct AdaBelief {
    static constexpr char name[] = "adabelief";
    static constexpr char states[] = "m s";
    static constexpr char hypers[] = "lr beta1 beta2 eps";
    struct Hyper {
        double lr, beta1, beta2, eps;
    };
    template <class T>
    struct Scalars {
        T beta1, one_minus_beta1, beta2, one_minus_beta2, eps, step_size, eps_outside;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h, int64_t t) {
        double c1 = 1 - power(h.beta1, t);
        double c2 = root(1 - power(h.beta2, t));
        return {h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2, h.eps, h.lr * c2 / c1, h.eps * c2};
    }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& m, T& s) {
        m = k.beta1 * m + k.one_minus_beta1 * g;
        T d = g - m;
        s = k.beta2 * s + k.one_minus_beta2 * (d * d) + k.eps;
        return (k.step_size * m) / (root(s) + k.eps_outside);
    }
};

}  // namespace
