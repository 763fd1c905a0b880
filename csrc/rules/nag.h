// Nesterov's accelerated gradient (1983), with the gradient at the current parameter (Bengio et al. 2013).
// q = a g, b = mu b + q, u = s (q + mu b). velocity_step = 1 puts lr into the velocity b (Keras): a = lr, s = 1;
// velocity_step = 0 keeps lr out (PyTorch): a = 1, s = lr.
#pragma once
#include "rules/rule.h"

namespace {

struct NAG {
    static constexpr char name[] = "nag";
    static constexpr char states[] = "b";
    static constexpr char hypers[] = "lr momentum velocity_step";
    struct Hyper {
        double lr, momentum, velocity_step;
    };
    template <class T>
    struct Scalars {
        T mu, gain, step_size;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h) {
        if (h.velocity_step) return {h.momentum, h.lr, 1};
        return {h.momentum, 1, h.lr};
    }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& b) {
        T q = k.gain * g;
        b = k.mu * b + q;
        return k.step_size * (q + k.mu * b);
    }
};

}  // namespace
