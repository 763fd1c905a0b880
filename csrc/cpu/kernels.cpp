// The loop of every rule on a CPU, compiled once per instruction set (-DFUSEDSTEP_ISA=...) and vectorised by the
// compiler. Nothing here may leave a weak symbol behind: the linker could hand code for a newer CPU to an older one.
#include "../around.h"
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
template <class Rule, bool kGeneral, class T, class... State>
RULE void loop(const T* scalars, int64_t n, T* __restrict p, const T* __restrict g, State* __restrict... s) {
    const auto k = *reinterpret_cast<const typename Rule::template Scalars<T>*>(scalars);
    const auto around = *reinterpret_cast<const Around::Scalars<T>*>(scalars + kMaxRuleScalars);
    INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
        if constexpr (kGeneral)
            p[i] = Around::parameter(around, p[i], Rule::update(k, Around::gradient(around, p[i], g[i]), s[i]...));
        else
            p[i] = p[i] - Rule::update(k, g[i], s[i]...);
    }
}

template <class Rule, bool kGeneral, class T>
void update(const Slot& slot, const Group& group, int64_t begin, int64_t end) {
    constexpr int kStates = words(Rule::states);
    static_assert(kStates <= kMaxStates);
    const T* scalars = group.scalars(T());
    int64_t n = end - begin;
    T* p = static_cast<T*>(slot.param) + begin;
    const T* g = static_cast<const T*>(slot.grad) + begin;
    auto state = [&](int j) { return static_cast<T*>(slot.states[j]) + begin; };
    if constexpr (kStates == 0) loop<Rule, kGeneral>(scalars, n, p, g);
    if constexpr (kStates == 1) loop<Rule, kGeneral>(scalars, n, p, g, state(0));
    if constexpr (kStates == 2) loop<Rule, kGeneral>(scalars, n, p, g, state(0), state(1));
    if constexpr (kStates == 3) loop<Rule, kGeneral>(scalars, n, p, g, state(0), state(1), state(2));
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
    *reinterpret_cast<Around::Scalars<double>*>(group.float64 + kMaxRuleScalars) = Around::derive(a, h.lr);
    group.general = Around::is_needed(a);
    for (int i = 0; i < kMaxScalars; ++i) group.float32[i] = static_cast<float>(group.float64[i]);
}

#define KERNEL(Rule)                                           \
    {Rule::name,                                               \
     Rule::states,                                             \
     Rule::hypers,                                             \
     words(Rule::states),                                      \
     words(Rule::hypers) + words(Around::hypers),              \
     derive<Rule>,                                             \
     {{update<Rule, false, float>, update<Rule, true, float>}, \
      {update<Rule, false, double>, update<Rule, true, double>}}},

constexpr Kernel kKernels[] = {FUSEDSTEP_RULES(KERNEL) FUSEDSTEP_LIMITS(KERNEL)};

}  // namespace

namespace fusedstep {

extern const Kernels KERNELS(FUSEDSTEP_ISA);
const Kernels KERNELS(FUSEDSTEP_ISA) = {QUOTE(FUSEDSTEP_ISA), kKernels, kKernels + sizeof(kKernels) / sizeof(Kernel)};

}  // namespace fusedstep
