// RAdam (Liu et al. 2020, Algorithm 2). m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, u = step m /
// (sqrt(v) + eps) where the variance of the adaptive step is known well enough (rho > 5, as in PyTorch), else u = step
// m.
#pragma once
#include "rules/rule.h"

namespace {

struct RAdam {
    static constexpr char name[] = "radam";
    static constexpr char states[] = "m v";
    static constexpr char hypers[] = "lr beta1 beta2 eps";
    struct Hyper {
        double lr, beta1, beta2, eps;
    };
    template <class T>
    struct Scalars {
        T beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, adapts, eps;  // adapts is 1 or 0
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h, int64_t t) {
        double o1 = 1 - h.beta1, o2 = 1 - h.beta2, b2 = power(h.beta2, t);
        double rho_inf = 2 / o2 - 1, rho = rho_inf - 2.0 * t * b2 / (1 - b2);
        double c1 = 1 - power(h.beta1, t);
        if (rho > 5) {
            double r = root(((rho - 4) * (rho - 2) * rho_inf) / ((rho_inf - 4) * (rho_inf - 2) * rho));
            return {h.beta1, o1, h.beta2, o2, h.lr * r * root(1 - b2) / c1, 1, h.eps};
        }
        return {h.beta1, o1, h.beta2, o2, h.lr / c1, 0, 1};
    }

    // Where the step does not adapt, it is divided by 1. The root is deselected, not multiplied by 0, which would let
    // NaN and infinity in v through.
    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& m, T& v) {
        m = k.beta1 * m + k.one_minus_beta1 * g;
        v = k.beta2 * v + k.one_minus_beta2 * (g * g);
        T deviation = k.adapts != 0 ? root(v) : 0;
        return (k.step_size * m) / (deviation + k.eps);
    }
};

}  // namespace
