// The scalars of an update, derived once per step in double and rounded once, and the update of an element by them.
#pragma once

#include "element/around.h"
#include "rules/rule.h"
#include "step.h"

namespace {

using namespace fusedstep;

// Whether the scalars of a rule depend on the number of the update.
template <class Rule>
constexpr bool kCounts = requires(typename Rule::Hyper h, int64_t t) { Rule::derive(h, t); };
// Whether a rule keeps numbers between updates.
template <class Rule>
constexpr bool kRemembers = requires { Rule::memory; };

// Whether a rule is a yardstick (see limit.h), which is only ever run without options.
template <class Rule>
constexpr bool kYardstick = requires { Rule::is_yardstick; };

template <class Rule>
constexpr const char* memory_names() {
    if constexpr (kRemembers<Rule>)
        return Rule::memory;
    else
        return "";
}

template <class Rule>
INLINE_HOST_DEVICE typename Rule::template Scalars<double> scalars_of_rule(const typename Rule::Hyper& h,
                                                                           Clock& clock) {
    if constexpr (kRemembers<Rule>) {
        using Memory = typename Rule::Memory;
        static_assert(sizeof(Memory) == words(Rule::memory) * sizeof(double) && words(Rule::memory) <= kMaxMemory);
        return Rule::derive(h, clock.t, *reinterpret_cast<Memory*>(clock.memory));
    } else if constexpr (kCounts<Rule>) {
        return Rule::derive(h, clock.t);
    } else {
        return Rule::derive(h);
    }
}

// Advance a clock by one update and derive its scalars from a row of hyperparameters.
template <class Rule>
INLINE_HOST_DEVICE void derive(const double* hypers, Clock& clock, Derived& derived) {
    using Hyper = typename Rule::Hyper;
    using Scalars = typename Rule::template Scalars<double>;
    static_assert(sizeof(Hyper) == words(Rule::hypers) * sizeof(double));
    static_assert(words(Rule::hypers) + words(Around::hypers) <= kMaxHypers);
    constexpr int kOwn = sizeof(Scalars) / sizeof(double);
    static_assert(kOwn <= kMaxRuleScalars);

    const auto& h = *reinterpret_cast<const Hyper*>(hypers);
    const auto& a = *reinterpret_cast<const Around::Hyper*>(hypers + words(Rule::hypers));
    ++clock.t;
    *reinterpret_cast<Scalars*>(derived.float64) = scalars_of_rule<Rule>(h, clock);
    for (int i = 0; i < kOwn; ++i) derived.float32[i] = rounded(derived.float64[i]);
    Around::derive(a, h.lr, clock, derived);
}

// Show the numbers of a clock where a tensor has places for them.
template <class Tensor>
INLINE_HOST_DEVICE void show(const Clock& clock, const Tensor& tensor) {
    const double numbers[kShown] = {static_cast<double>(clock.t), clock.memory[0]};
    for (int j = 0; j < kShown; ++j) {
        if (!tensor.shown[j]) continue;
        if (tensor.shown_type == kFloat64)
            *static_cast<double*>(tensor.shown[j]) = numbers[j];
        else
            *static_cast<float*>(tensor.shown[j]) = static_cast<float>(numbers[j]);
    }
}

// Call f(j) for each state of a rule. Not a loop: its index would not be a constant, and arrays of states that are
// indexed by variables do not stay in registers.
template <class Rule, class F>
INLINE_HOST_DEVICE void each_state(F f) {
    constexpr int n = words(Rule::states);
    static_assert(n <= kMaxStates);
    if constexpr (n > 0) f(0);
    if constexpr (n > 1) f(1);
    if constexpr (n > 2) f(2);
    if constexpr (n > 3) f(3);
}

// Whoever does not ask what is subtracted from a parameter.
struct Unseen {
    template <class T>
    INLINE_HOST_DEVICE void operator()(T) const {}
};

// The scalars of an update in T, the type of the arithmetic, and the update of an element.
template <class Rule, class T>
struct Scalars {
    static constexpr int kStateCount = words(Rule::states);

    const typename Rule::template Scalars<T> rule;
    const Around::Scalars<T> around;
    const T scale;
    const Variant variant;

    INLINE_HOST_DEVICE Scalars(const Derived& derived, double gradient_scale)
        : rule(*reinterpret_cast<const typename Rule::template Scalars<T>*>(scalars_of(derived, T()))),
          around(Around::scalars<T>(derived)),
          scale(static_cast<T>(gradient_scale)),
          variant(derived.variant) {}

    // The new parameter. state(j) is a reference to state number j, which receives the new state. seen(u) is called
    // with what is subtracted from the parameter.
    template <Variant kVariant, class State, class Seen = Unseen>
    INLINE_HOST_DEVICE T parameter(T p, T g, State state, Seen seen = {}) const {
        if constexpr (kVariant == kPlain) {
            const T u = update(g, state);
            seen(u);
            return p - u;
        } else {
            const T u = update(Around::gradient<kVariant>(around, scale, p, g), state);
            const T all = Around::subtracted(around, p, u);
            seen(all);
            return Around::parameter<kVariant>(around, p, all);
        }
    }

private:
    template <class State>
    INLINE_HOST_DEVICE T update(T g, State state) const {
        if constexpr (kStateCount == 0) return Rule::update(rule, g);
        if constexpr (kStateCount == 1) return Rule::update(rule, g, state(0));
        if constexpr (kStateCount == 2) return Rule::update(rule, g, state(0), state(1));
        if constexpr (kStateCount == 3) return Rule::update(rule, g, state(0), state(1), state(2));
        if constexpr (kStateCount == 4) return Rule::update(rule, g, state(0), state(1), state(2), state(3));
    }
};

}  // namespace
