// What surrounds every rule, per element and in registers: maximize and decay.
// The general loop contains it, the plain loop does not; an option that is off is deselected, never multiplied by 0.
#pragma once
#include "rules/rule.h"

namespace {

struct Around {
    static constexpr char hypers[] = "weight_decay decoupled maximize";
    struct Hyper {
        double weight_decay, decoupled, maximize;
    };
    template <class T>
    struct Scalars {
        T maximize, has_l2, l2, has_decay, decay;  // has_: 1 or 0
    };

    RULE static bool is_needed(const Hyper& h) { return h.weight_decay != 0 || h.maximize != 0; }

    RULE static Scalars<double> derive(const Hyper& h, double lr) {
        double on = h.weight_decay != 0;
        return {h.maximize, h.decoupled ? 0 : on, h.weight_decay, h.decoupled ? on : 0, lr * h.weight_decay};
    }

    // The gradient that the rule sees.
    template <class T>
    RULE static T gradient(const Scalars<T>& k, T p, T g) {
        g = k.maximize != 0 ? -g : g;
        return k.has_l2 != 0 ? g + k.l2 * p : g;
    }

    // The new parameter, from the old one and the rule's update u.
    template <class T>
    RULE static T parameter(const Scalars<T>& k, T p, T u) {
        return k.has_decay != 0 ? p - (u + k.decay * p) : p - u;
    }
};

}  // namespace
