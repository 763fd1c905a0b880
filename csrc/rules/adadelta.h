// Adadelta (Zeiler 2012, Algorithm 1, where lr = 1).
// v = rho v + (1 - rho) g^2, d = sqrt((x + eps)/(v + eps)) g, x = rho x + (1 - rho) d^2, u = lr d.
#pragma once
#include "rules/rule.h"

namespace {

struct Adadelta {
    static constexpr char name[] = "adadelta";
    static constexpr char states[] = "v x";
    static constexpr char hypers[] = "lr rho eps";
    struct Hyper {
        double lr, rho, eps;
    };
    template <class T>
    struct Scalars {
        T lr, rho, one_minus_rho, eps;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h) { return {h.lr, h.rho, 1 - h.rho, h.eps}; }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& v, T& x) {
        v = k.rho * v + k.one_minus_rho * (g * g);
        T d = root((x + k.eps) / (v + k.eps)) * g;
        x = k.rho * x + k.one_minus_rho * (d * d);
        return k.lr * d;
    }
};

}  // namespace
