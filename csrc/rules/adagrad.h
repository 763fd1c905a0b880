// Adagrad (Duchi, Hazan & Singer 2011, diagonal form). a = a + g^2, u = lr g / (sqrt(a + inside) + outside).
#pragma once
#include "rules/rule.h"

namespace {

struct Adagrad {
    static constexpr char name[] = "adagrad";
    static constexpr char states[] = "a";
    static constexpr char hypers[] = "lr eps_inside eps_outside";
    struct Hyper {
        double lr, eps_inside, eps_outside;
    };
    template <class T>
    struct Scalars {
        T lr, eps_inside, eps_outside;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h) { return {h.lr, h.eps_inside, h.eps_outside}; }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& a) {
        a = a + g * g;
        return (k.lr * g) / (root(a + k.eps_inside) + k.eps_outside);
    }
};

}  // namespace
