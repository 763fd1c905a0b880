// The scalars of an update: derived once per step in double, rounded once, and what an element becomes by them.
#pragma once

#include "element/around.h"
#include "rules/rule.h"
#include "step.h"

namespace {

using namespace fusedstep;

// Advance a clock by one update and derive its scalars.
template <class Rule>
INLINE_HOST_DEVICE void derive(const double* hyper, Clock& clock, Derived& group) {
    using Hyper = typename Rule::Hyper;
    using Scalars = typename Rule::template Scalars<double>;
    static_assert(sizeof(Hyper) == words(Rule::hypers) * sizeof(double));
    static_assert(words(Rule::hypers) + words(Around::hypers) <= kMaxHypers);
    constexpr int kOwn = sizeof(Scalars) / sizeof(double);
    constexpr int kAround = sizeof(Around::Scalars<double>) / sizeof(double);
    static_assert(kOwn <= kMaxRuleScalars && kMaxRuleScalars + kAround <= kMaxScalars);

    const auto& h = *reinterpret_cast<const Hyper*>(hyper);
    const auto& a = *reinterpret_cast<const Around::Hyper*>(hyper + words(Rule::hypers));
    int64_t t = ++clock.t;
    auto& scalars = *reinterpret_cast<Scalars*>(group.float64);
    if constexpr (requires { Rule::derive(h, t, clock.product); })
        scalars = Rule::derive(h, t, clock.product);
    else
        scalars = Rule::derive(h, t);
    *reinterpret_cast<Around::Scalars<double>*>(group.float64 + kMaxRuleScalars) =
        Around::derive(a, h.lr, !clock.averaged);
    if (a.averages()) clock.averaged = 1;
    group.variant = Around::variant(a);
    group.zero_grad = a.zero_grad != 0;
    group.stochastic = a.rounding_stochastic != 0;
    group.seed = static_cast<uint64_t>(a.seed);
    auto round = [&](int begin, int end) {
        for (int i = begin; i < end; ++i) group.float32[i] = static_cast<float>(group.float64[i]);
    };
    round(0, kOwn);
    round(kMaxRuleScalars, kMaxRuleScalars + kAround);
}

INLINE_HOST_DEVICE const double* scalars_of(const Derived& group, double) {
    return group.float64;
}
INLINE_HOST_DEVICE const float* scalars_of(const Derived& group, float) {
    return group.float32;
}

// The scalars of an update, as the loops use them.
template <class Rule, class T>
struct Scalars {
    const typename Rule::template Scalars<T> rule;
    const Around::Scalars<T> around;
    const T scale;
    const Variant variant;

    INLINE_HOST_DEVICE Scalars(const Derived& group, double gradient_scale)
        : rule(*reinterpret_cast<const typename Rule::template Scalars<T>*>(scalars_of(group, T()))),
          around(*reinterpret_cast<const Around::Scalars<T>*>(scalars_of(group, T()) + kMaxRuleScalars)),
          scale(static_cast<T>(gradient_scale)),
          variant(group.variant) {}

    // The new parameter; the states become new ones.
    template <Variant kVariant, class... State>
    INLINE_HOST_DEVICE T parameter(T p, T g, State&... s) const {
        if constexpr (kVariant == kPlain) return p - Rule::update(rule, g, s...);
        T u = Rule::update(rule, Around::gradient<kVariant>(around, scale, p, g), s...);
        return Around::parameter(around, p, u);
    }
};

}  // namespace
