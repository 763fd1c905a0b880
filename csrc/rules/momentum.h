// Momentum (Polyak 1964, in the form of Sutskever et al. 2013). b = mu b + a g, u = s b.
// With k = 1 - dampening, velocity_step = 1 puts lr into the velocity b (Keras): a = k lr, s = 1; velocity_step = 0
// keeps lr out (PyTorch): a = k, s = lr. Unless dampen_first, k = 1 in the first update.
#pragma once
#include "rules/rule.h"

namespace {

struct Momentum {
    static constexpr char name[] = "momentum";
    static constexpr char states[] = "b";
    static constexpr char hypers[] = "lr momentum dampening dampen_first velocity_step";
    struct Hyper {
        double lr, momentum, dampening, dampen_first, velocity_step;
    };
    template <class T>
    struct Scalars {
        T mu, gain, step_size;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h, int64_t t) {
        double k = t == 1 && !h.dampen_first ? 1 : 1 - h.dampening;
        if (h.velocity_step) return {h.momentum, k * h.lr, 1};
        return {h.momentum, k, h.lr};
    }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& b) {
        b = k.mu * b + k.gain * g;
        return k.step_size * b;
    }
};

}  // namespace
