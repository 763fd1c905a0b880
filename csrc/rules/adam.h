// Adam (Kingma & Ba 2015, Algorithm 1). m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
// u = step m / (sqrt(v + inside) + outside). Both bias corrections sit in the scalars: an element takes one root, one
// division. eps is added to the corrected root (eps_outside), to the raw root (eps_hat), or under the corrected root
// (eps_inside).
#pragma once
#include "rules/rule.h"

namespace {

struct Adam {
    static constexpr char name[] = "adam";
    static constexpr char states[] = "m v";
    static constexpr char hypers[] = "lr beta1 beta2 eps_outside eps_hat eps_inside";
    struct Hyper {
        double lr, beta1, beta2, eps_outside, eps_hat, eps_inside;
    };
    template <class T>
    struct Scalars {
        T beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, eps_inside, eps_outside;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h, int64_t t) {
        double c1 = 1 - power(h.beta1, t);
        double c2 = root(1 - power(h.beta2, t));
        double inside = h.eps_inside * c2 * c2;
        double outside = h.eps_outside * c2 + h.eps_hat;  // eps_outside or eps_hat is 0, so the sum is exact
        return {h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2, h.lr * c2 / c1, inside, outside};
    }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& m, T& v) {
        m = k.beta1 * m + k.one_minus_beta1 * g;
        v = k.beta2 * v + k.one_minus_beta2 * (g * g);
        return (k.step_size * m) / (root(v + k.eps_inside) + k.eps_outside);
    }
};

}  // namespace
