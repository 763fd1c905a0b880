// What surrounds every rule, for one element in registers. Before the rule, the gradient is unscaled, negated, clipped,
// and decay is added to it; after the rule, decay is subtracted from the parameter, which is kept within bounds, and
// the average of the parameters follows. An option that is off is deselected, never multiplied by 0, since 0 times
// infinity is NaN.
#pragma once
#include "rules/rule.h"
#include "step.h"

namespace {

using namespace fusedstep;

// A scalar in float, where subnormals count as zero. Arithmetic would flush them, but a selection would not.
INLINE_HOST_DEVICE float rounded(double x) {
    return static_cast<float>(magnitude(x) < 0x1p-126 - 0x1p-150 ? 0 * x : x);
}

INLINE_HOST_DEVICE const double* scalars_of(const Derived& derived, double) {
    return derived.float64;
}
INLINE_HOST_DEVICE const float* scalars_of(const Derived& derived, float) {
    return derived.float32;
}

struct Around {
    static constexpr char hypers[] =
        "grad_scale maximize clip_value clip_norm clip_global_norm l1 weight_decay decoupled low high ema zero_grad "
        "rounding_stochastic seed master frozen";
    // Clipping and bounds that are off have infinite limits, and an average that is off an infinite ema. The master is
    // 0 (none), 1 (float32) or 2 (split). A plan gives engines no gradient of what is frozen.
    struct Hyper {
        double grad_scale, maximize, clip_value, clip_norm, clip_global_norm, l1, weight_decay, decoupled, low, high,
            ema, zero_grad, rounding_stochastic, seed, master, frozen;

        INLINE_HOST_DEVICE bool measures() const { return clip_norm < HUGE_VAL || clip_global_norm < HUGE_VAL; }
        INLINE_HOST_DEVICE bool bounds() const { return low > -HUGE_VAL || high < HUGE_VAL; }
        INLINE_HOST_DEVICE bool averages() const { return ema <= 1; }
    };
    template <class T>
    struct Scalars {
        T clip, has_l2, l2, has_l1, l1, has_decay, decay, low, high, ema, one_minus_ema,
            begins;  // has_* and begins are 1 or 0
    };

    // The cheapest variant of the loop that computes the options of a row, factors on the gradient left aside.
    INLINE_HOST_DEVICE static Variant variant(const Hyper& h) {
        if (h.averages()) return kAveraged;
        if (h.clip_value < HUGE_VAL || h.l1 != 0 || h.bounds()) return kClipped;
        return h.weight_decay != 0 ? kDecayed : kPlain;
    }

    INLINE_HOST_DEVICE static Scalars<double> derive(const Hyper& h, double lr, bool begins) {
        double has_decay = h.weight_decay != 0;
        return {h.clip_value,
                h.decoupled ? 0 : has_decay,
                h.weight_decay,
                double(h.l1 != 0),
                h.l1,
                h.decoupled ? has_decay : 0,
                lr * h.weight_decay,
                h.low,
                h.high,
                h.ema,
                1 - h.ema,
                double(begins)};
    }

    // Derive all that surrounds the rule, and note in the clock that the average begins. A tensor without a gradient
    // needs no more than this for its average.
    INLINE_HOST_DEVICE static void derive(const Hyper& h, double lr, Clock& clock, Derived& derived) {
        constexpr int kCount = sizeof(Scalars<double>) / sizeof(double);
        static_assert(kMaxRuleScalars + kCount <= kMaxScalars);
        double* const exact = derived.float64 + kMaxRuleScalars;
        *reinterpret_cast<Scalars<double>*>(exact) = derive(h, lr, !clock.averaged);
        for (int i = 0; i < kCount; ++i) derived.float32[kMaxRuleScalars + i] = rounded(exact[i]);
        if (h.averages()) clock.averaged = 1;
        derived.variant = variant(h);
        derived.zero_grad = h.zero_grad != 0;
        derived.stochastic = h.rounding_stochastic != 0;
        derived.seed = static_cast<uint64_t>(h.seed);
    }

    template <class T>
    INLINE_HOST_DEVICE static const Scalars<T>& scalars(const Derived& derived) {
        return *reinterpret_cast<const Scalars<T>*>(scalars_of(derived, T()) + kMaxRuleScalars);
    }

    // What a tensor contributes to the sum of squares over all tensors, in `unit`: its sum * (grad_scale / largest)^2,
    // where `largest` is the largest factor on a gradient of the step. Dividing by the largest factor keeps the sum in
    // range; where all factors are equal the weight is exactly 1. So is the ratio of units, unless squares overflow.
    INLINE_HOST_DEVICE static double share(double grad_scale, double largest, const SquareSum& squares, double unit) {
        double weight = largest != 0 ? grad_scale / largest : 1, ratio = squares.unit / unit;
        return squares.sum * (weight * weight) * ratio * ratio;
    }

    INLINE_HOST_DEVICE static double norm(const SquareSum& squares, double scale) {
        return root(squares.sum) * magnitude(scale) * squares.unit;
    }

    // The factor on a gradient, without clipping by a norm. It is negative where the loss is maximized.
    INLINE_HOST_DEVICE static double scale(const Hyper& h, double step_scale) {
        double own = h.grad_scale * step_scale;
        return h.maximize != 0 ? -own : own;
    }

    // The factor on a gradient, with clipping by the norm of its tensor, or by the norm of all tensors.
    INLINE_HOST_DEVICE static double scale(const Hyper& h, double step_scale, const SquareSum& squares,
                                           double norm_of_all) {
        double own = scale(h, step_scale), coefficient = 1;
        if (h.clip_norm < HUGE_VAL) coefficient = h.clip_norm / larger(norm(squares, own), h.clip_norm);
        if (h.clip_global_norm < HUGE_VAL)
            coefficient = norm_of_all < HUGE_VAL ? h.clip_global_norm / larger(norm_of_all, h.clip_global_norm)
                                                 : norm_of_all - norm_of_all;  // NaN
        return own * coefficient;
    }

    // The gradient that the rule sees.
    template <Variant kVariant, class T>
    INLINE_HOST_DEVICE static T gradient(const Scalars<T>& k, T scale, T p, T g) {
        g = scale * g;
        if constexpr (kVariant >= kClipped) g = clipped(g, -k.clip, k.clip);
        g = k.has_l2 != 0 ? g + k.l2 * p : g;
        if constexpr (kVariant >= kClipped) g = k.has_l1 != 0 ? g + with_sign_of(p, k.l1) : g;
        return g;
    }

    // What is subtracted from the parameter, from the rule's update u.
    template <class T>
    INLINE_HOST_DEVICE static T subtracted(const Scalars<T>& k, T p, T u) {
        return k.has_decay != 0 ? u + k.decay * p : u;
    }

    // The new parameter, from the old one and what is subtracted.
    template <Variant kVariant, class T>
    INLINE_HOST_DEVICE static T parameter(const Scalars<T>& k, T p, T u) {
        p = p - u;
        if constexpr (kVariant >= kClipped) p = clipped(p, k.low, k.high);
        return p;
    }

    // The new average, from the old one and the new parameter.
    template <class T>
    INLINE_HOST_DEVICE static T average(const Scalars<T>& k, T e, T p) {
        return k.begins != 0 ? p : k.ema * e + k.one_minus_ema * p;
    }
};

}  // namespace
