// Drift, an optimizer of the tests alone, as large as a rule may be. Means m of g and v of g^2, the fading largest w of
// |g| + floor, and a fading sum x of m; u = (m_gain m + x_gain x) / max(sqrt(v + inside), w). The product of beta1 and
// the sum of the powers of the momentum, which m and x are divided by, are kept between the steps.
#pragma once
#include "rules/rule.h"

namespace {

struct Drift {
    static constexpr char name[] = "drift";
    static constexpr char states[] = "m v w x";
    static constexpr char hypers[] = "lr beta1 beta2 rho momentum eps_outside eps_inside share floor";
    static constexpr char memory[] = "product weight";
    struct Hyper {
        double lr, beta1, beta2, rho, momentum, eps_outside, eps_inside, share, floor;
    };
    struct Memory {
        double product, weight;
    };
    template <class T>
    struct Scalars {
        T beta1, one_minus_beta1, beta2, one_minus_beta2, rho, momentum, m_gain, x_gain, inside, floor;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h, int64_t t, Memory& memory) {
        double product = memory.product = t == 1 ? h.beta1 : memory.product * h.beta1;
        double weight = memory.weight = t == 1 ? 1 : h.momentum * memory.weight + 1;
        double m_gain = h.lr * (1 - h.share) / (1 - product);
        double x_gain = h.lr * h.share / weight;
        return {h.beta1,    1 - h.beta1, h.beta2, 1 - h.beta2,  h.rho,
                h.momentum, m_gain,      x_gain,  h.eps_inside, h.floor + h.eps_outside};
    }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& m, T& v, T& w, T& x) {
        m = k.beta1 * m + k.one_minus_beta1 * g;
        v = k.beta2 * v + k.one_minus_beta2 * (g * g);
        w = larger(k.rho * w, magnitude(g) + k.floor);
        x = k.momentum * x + m;
        return (k.m_gain * m + k.x_gain * x) / larger(root(v + k.inside), w);
    }
};

}  // namespace
