// The loop of every rule on a CPU, compiled once per instruction set (-DFUSEDSTEP_ISA=...) and vectorised by the
// compiler. Nothing here may leave a weak symbol behind: the linker could hand code for a newer CPU to an older one.
#include "../around.h"
#include "../norm.h"
#include "../rules/all.h"
#include "../step.h"

#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif
#define STRING(x) #x
#define QUOTE(x) STRING(x)
#define JOIN(a, b) a##b
#define KERNELS(isa) JOIN(kernels_, isa)

namespace {

using namespace fusedstep;

// The elements of an update are independent: arrays that overlap have been refused.
template <class Rule, Variant kVariant, class T, class... State>
RULE void loop(const Slot& slot, const Group& group, int64_t begin, int64_t n, State* __restrict... s) {
    const T* scalars = group.scalars(T());
    const auto k = *reinterpret_cast<const typename Rule::template Scalars<T>*>(scalars);
    const auto around = *reinterpret_cast<const Around::Scalars<T>*>(scalars + kMaxRuleScalars);
    const T scale = static_cast<T>(slot.scale);
    T* __restrict p = static_cast<T*>(slot.param) + begin;
    const T* __restrict g = static_cast<const T*>(slot.grad) + begin;
    T* __restrict e = kVariant == kAveraged ? static_cast<T*>(slot.average) + begin : nullptr;
    INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
        if constexpr (kVariant == kPlain) {
            p[i] = p[i] - Rule::update(k, g[i], s[i]...);
        } else {
            T u = Rule::update(k, Around::gradient<kVariant>(around, scale, p[i], g[i]), s[i]...);
            p[i] = Around::parameter(around, p[i], u);
            if constexpr (kVariant == kAveraged) e[i] = Around::average(around, e[i], p[i]);
        }
    }
}

template <class Rule, Variant kVariant, class T>
void update(const Slot& slot, const Group& group, int64_t begin, int64_t end) {
    constexpr int kStates = words(Rule::states);
    static_assert(kStates <= kMaxStates);
    int64_t n = end - begin;
    auto state = [&](int j) { return static_cast<T*>(slot.states[j]) + begin; };
    if constexpr (kStates == 0) loop<Rule, kVariant, T>(slot, group, begin, n);
    if constexpr (kStates == 1) loop<Rule, kVariant, T>(slot, group, begin, n, state(0));
    if constexpr (kStates == 2) loop<Rule, kVariant, T>(slot, group, begin, n, state(0), state(1));
    if constexpr (kStates == 3) loop<Rule, kVariant, T>(slot, group, begin, n, state(0), state(1), state(2));
}

template <class T>
void square(const void* array, int64_t size, int64_t begin, int64_t end, double* sums) {
    const T* x = static_cast<const T*>(array);
    for (int64_t b = begin; b < end; ++b) {
        int64_t rest = size - b * kBlock;
        sums[b] = block_sum<true>(x + b * kBlock, rest < kBlock ? rest : kBlock);
    }
}

template <class Rule>
void derive(const double* hyper, Clock& clock, Group& group) {
    using Hyper = typename Rule::Hyper;
    using Scalars = typename Rule::template Scalars<double>;
    static_assert(sizeof(Hyper) == words(Rule::hypers) * sizeof(double));
    static_assert(words(Rule::hypers) + words(Around::hypers) <= kMaxHypers);
    static_assert(sizeof(Scalars) <= kMaxRuleScalars * sizeof(double));
    static_assert(sizeof(Around::Scalars<double>) <= (kMaxScalars - kMaxRuleScalars) * sizeof(double));

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
    for (int i = 0; i < kMaxScalars; ++i) group.float32[i] = static_cast<float>(group.float64[i]);
}

#define VARIANTS(Rule, T) \
    {update<Rule, kPlain, T>, update<Rule, kDecayed, T>, update<Rule, kGeneral, T>, update<Rule, kAveraged, T>}
#define KERNEL(Rule)                                                   \
    {Rule::name,          Rule::states,                                \
     Rule::hypers,        words(Rule::states),                         \
     words(Rule::hypers), words(Rule::hypers) + words(Around::hypers), \
     derive<Rule>,        {VARIANTS(Rule, float), VARIANTS(Rule, double)}},

constexpr Kernel kKernels[] = {FUSEDSTEP_RULES(KERNEL) FUSEDSTEP_LIMITS(KERNEL)};

}  // namespace

namespace fusedstep {

extern const Kernels KERNELS(FUSEDSTEP_ISA);
const Kernels KERNELS(FUSEDSTEP_ISA) = {
    QUOTE(FUSEDSTEP_ISA), kKernels, kKernels + sizeof(kKernels) / sizeof(Kernel), {square<float>, square<double>}};

}  // namespace fusedstep
