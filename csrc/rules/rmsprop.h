// RMSprop (Tieleman & Hinton 2012, lecture 6.5), centered (Graves 2013), and either with momentum.
// v = rho v + (1 - rho) g^2, d = v or, centered, v - m^2, u = lr g / (sqrt(d + eps_inside) + eps_outside).
#pragma once
#include "rules/rule.h"

namespace {

template <class Scalars, class T>
INLINE_HOST_DEVICE T mean_square(const Scalars& k, T g, T& v) {
    v = k.rho * v + k.one_minus_rho * (g * g);
    return v;
}

// The variance v - m^2, which only rounding can make negative: the selection removes that noise, and lets NaN through.
template <class Scalars, class T>
INLINE_HOST_DEVICE T variance(const Scalars& k, T g, T& v, T& m) {
    T d = mean_square(k, g, v);
    m = k.rho * m + k.one_minus_rho * g;
    d = d - m * m;
    return d < 0 ? 0 : d;
}

template <class Scalars, class T>
INLINE_HOST_DEVICE T denominator(const Scalars& k, T d) {
    return root(d + k.eps_inside) + k.eps_outside;
}

struct RMSprop {
    static constexpr char name[] = "rmsprop";
    static constexpr char states[] = "v";
    static constexpr char hypers[] = "lr rho eps_inside eps_outside";
    struct Hyper {
        double lr, rho, eps_inside, eps_outside;
    };
    template <class T>
    struct Scalars {
        T lr, rho, one_minus_rho, eps_inside, eps_outside;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h) {
        return {h.lr, h.rho, 1 - h.rho, h.eps_inside, h.eps_outside};
    }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& v) {
        return (k.lr * g) / denominator(k, mean_square(k, g, v));
    }
};

struct RMSpropCentered : RMSprop {
    static constexpr char name[] = "rmsprop_centered";
    static constexpr char states[] = "v m";

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& v, T& m) {
        return (k.lr * g) / denominator(k, variance(k, g, v, m));
    }
};

// RMSprop with momentum: b = mu b + a g / (sqrt(d + eps_inside) + eps_outside), u = s b. velocity_step = 1 puts lr into
// the velocity b (Keras): a = lr, s = 1; velocity_step = 0 keeps lr out (PyTorch): a = 1, s = lr.
struct RMSpropMomentum {
    static constexpr char name[] = "rmsprop_momentum";
    static constexpr char states[] = "v b";
    static constexpr char hypers[] = "lr rho eps_inside eps_outside momentum velocity_step";
    struct Hyper {
        double lr, rho, eps_inside, eps_outside, momentum, velocity_step;
    };
    template <class T>
    struct Scalars {
        T rho, one_minus_rho, eps_inside, eps_outside, mu, gain, step_size;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h) {
        double gain = h.velocity_step ? h.lr : 1;
        double step_size = h.velocity_step ? 1 : h.lr;
        return {h.rho, 1 - h.rho, h.eps_inside, h.eps_outside, h.momentum, gain, step_size};
    }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& v, T& b) {
        b = k.mu * b + (k.gain * g) / denominator(k, mean_square(k, g, v));
        return k.step_size * b;
    }
};

struct RMSpropCenteredMomentum : RMSpropMomentum {
    static constexpr char name[] = "rmsprop_centered_momentum";
    static constexpr char states[] = "v m b";

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& v, T& m, T& b) {
        b = k.mu * b + (k.gain * g) / denominator(k, variance(k, g, v, m));
        return k.step_size * b;
    }
};

}  // namespace
