// Adamax (Kingma & Ba 2015, Algorithm 2). m = beta1 m + (1 - beta1) g, w = max(beta2 w, |g| + eps_max),
// u = step m / (w + eps_outside).
#pragma once
#include "rules/rule.h"

namespace {

struct Adamax {
    static constexpr char name[] = "adamax";
    static constexpr char states[] = "m w";
    static constexpr char hypers[] = "lr beta1 beta2 eps_max eps_outside";
    struct Hyper {
        double lr, beta1, beta2, eps_max, eps_outside;
    };
    template <class T>
    struct Scalars {
        T beta1, one_minus_beta1, beta2, step_size, eps_max, eps_outside;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h, int64_t t) {
        double step_size = h.lr / (1 - power(h.beta1, t));
        return {h.beta1, 1 - h.beta1, h.beta2, step_size, h.eps_max, h.eps_outside};
    }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& m, T& w) {
        m = k.beta1 * m + k.one_minus_beta1 * g;
        w = larger(k.beta2 * w, magnitude(g) + k.eps_max);
        return (k.step_size * m) / (w + k.eps_outside);
    }
};

}  // namespace
