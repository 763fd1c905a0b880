// Nadam (Dozat 2016) with its momentum schedule mu_t = beta1 (1 - 0.5 r^t). The product of the momenta so far is kept
// between the steps. u = (m_gain m + g_gain g) / (sqrt(v) + eps).
#pragma once
#include "rules/rule.h"

namespace {

struct Nadam {
    static constexpr char name[] = "nadam";
    static constexpr char states[] = "m v";
    static constexpr char hypers[] = "lr beta1 beta2 eps decay_base";
    static constexpr char memory[] = "product";
    struct Hyper {
        double lr, beta1, beta2, eps, decay_base;  // decay_base is r = 0.96^schedule_decay
    };
    struct Memory {
        double product;
    };
    template <class T>
    struct Scalars {
        T beta1, one_minus_beta1, beta2, one_minus_beta2, m_gain, g_gain, eps;
    };

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h, int64_t t, Memory& memory) {
        double mu = h.beta1 * (1 - 0.5 * power(h.decay_base, t));
        double mu_next = h.beta1 * (1 - 0.5 * power(h.decay_base, t + 1));
        double product = memory.product = t == 1 ? mu : memory.product * mu;
        double c2 = root(1 - power(h.beta2, t));
        double m_gain = h.lr * mu_next / (1 - product * mu_next) * c2;
        double g_gain = h.lr * (1 - mu) / (1 - product) * c2;
        return {h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2, m_gain, g_gain, h.eps * c2};
    }

    template <class T>
    INLINE_HOST_DEVICE static T update(const Scalars<T>& k, T g, T& m, T& v) {
        m = k.beta1 * m + k.one_minus_beta1 * g;
        v = k.beta2 * v + k.one_minus_beta2 * (g * g);
        return (k.m_gain * m + k.g_gain * g) / (root(v) + k.eps);
    }
};

}  // namespace
