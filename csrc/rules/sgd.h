// Gradient descent (Cauchy 1847); stochastic: Robbins & Monro 1951. u = lr g.
#pragma once
#include "rules/rule.h"

namespace {

struct SGD {
    static constexpr char name[] = "sgd";
    static constexpr char states[] = "";
    static constexpr char hypers[] = "lr";
    struct Hyper {
        double lr;
    };
    template <class T>
    struct Scalars {
        T lr;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h) { return {h.lr}; }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g) {
        return k.lr * g;
    }
};

}  // namespace
