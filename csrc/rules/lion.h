// Lion (Chen et al. 2023). c = beta1 m + (1 - beta1) g, m = beta2 m + (1 - beta2) g, u = lr sign(c).
#pragma once
#include "rules/rule.h"

namespace {

struct Lion {
    static constexpr char name[] = "lion";
    static constexpr char states[] = "m";
    static constexpr char hypers[] = "lr beta1 beta2";
    struct Hyper {
        double lr, beta1, beta2;
    };
    template <class T>
    struct Scalars {
        T lr, beta1, one_minus_beta1, beta2, one_minus_beta2;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h) {
        return {h.lr, h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2};
    }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& m) {
        T c = k.beta1 * m + k.one_minus_beta1 * g;
        m = k.beta2 * m + k.one_minus_beta2 * g;
        return with_sign_of(c, k.lr);
    }
};

}  // namespace
