// The calling convention between the arrays and the engines: a step is a list of slots, one per tensor,
// whose scalars stand in groups, one per set of hyperparameters and step number.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace fusedstep {

enum Type : int8_t { kFloat32, kFloat64, kFloat16, kBFloat16, kUInt16, kTypes };

constexpr int64_t kItemSize[kTypes + 1] = {4, 8, 2, 2, 2, 0};

// The types of the arrays of a tensor. The average has that of the states; kTypes: there is no master.
struct Types {
    Type param = kTypes, grad = kTypes, state = kTypes, master = kTypes;

    bool has_master() const { return master != kTypes; }
    bool operator==(const Types&) const = default;
};

// The loops of their own that a rule has; all else is decided, vector by vector, by the generic one.
constexpr Types kCompiled[] = {{kFloat32, kFloat32, kFloat32},    {kFloat64, kFloat64, kFloat64},
                               {kBFloat16, kBFloat16, kBFloat16}, {kBFloat16, kBFloat16, kFloat32},
                               {kFloat16, kFloat16, kFloat16},    {kFloat16, kFloat16, kFloat32}};
constexpr int kPure = 2;  // so many of them convert nothing
constexpr int kGeneric = sizeof(kCompiled) / sizeof(Types);

constexpr int loop_of(const Types& types) {
    int loop = 0;
    while (loop < kGeneric && !(kCompiled[loop] == types)) ++loop;
    return loop;
}

constexpr int kHost = -1;  // where an array is, or the number of a GPU

constexpr int kMaxStates = 3;
// What the arrays of a tensor are.
enum Role : int32_t { kParam, kGrad, kStates, kAverage = kStates + kMaxStates, kMaster, kRoles };

constexpr int kMaxHypers = 21;  // the rule's, then those around it
constexpr int kMaxRuleScalars = 8;
constexpr int kMaxScalars = 20;  // the rule's, then those around it

// Which loop: the rule alone; with a factor on the gradient and decay; with all that surrounds it; with the average of
// the parameters too. The cheaper ones matter in the cache only.
enum Variant : int32_t { kPlain, kDecayed, kClipped, kAveraged, kVariants };

// One tensor. Without a gradient in this step, its size is 0.
struct Slot {
    void* arrays[kRoles] = {};
    int64_t size = 0;
    Types types;
    int32_t loop = 0;
    int32_t traffic = 1;  // the bytes that an update of an element reads and writes
    int32_t group = 0;
    double scale = 1;    // the factor on the gradient
    uint64_t noise = 0;  // the key of the random bits, where rounding is stochastic

    void become(const Types& found, int state_count) {
        types = found;
        loop = loop_of(types);
        traffic = static_cast<int32_t>(2 * kItemSize[types.param] + kItemSize[types.grad] +
                                       2 * state_count * kItemSize[types.state] + 2 * kItemSize[types.master]);
    }
};

// How far a tensor is. `product` is Nadam's product of its momenta so far; `averaged` is 1 once its average has begun.
struct Clock {
    int64_t t;
    double product;
    int64_t averaged;

    bool operator==(const Clock&) const = default;
};

// The scalars of an update, derived in double and rounded once.
struct Derived {
    double float64[kMaxScalars];
    float float32[kMaxScalars];
    Variant variant;      // the least that it needs
    bool zero_grad;       // whether gradients are set to +0
    bool stochastic;      // whether halves are rounded by chance
    uint64_t seed;        // of that
    Clock before, after;  // of the tensors that this update concerns
};

// One rule, as one instruction set runs it.
struct Kernel {
    const char* name;
    const char* states;
    const char* hypers;  // the rule's; those around it follow
    int state_count;
    int rule_hyper_count;
    int hyper_count;
    // Advance the clock by one update and derive its scalars.
    void (*derive)(const double* hyper, Clock& clock, Derived& group);
    // Update the elements [begin, end) of a slot.
    void (*update[kGeneric + 1][kVariants])(const Slot& slot, const Derived& group, int64_t begin, int64_t end);
};

struct Kernels {
    const char* isa;
    const Kernel* begin;
    const Kernel* end;
    // The sums of squares of the blocks [begin, end) of an array of `size` elements; see norm.h.
    void (*square[kTypes])(const void* array, int64_t size, int64_t begin, int64_t end, double* sums);
};

}  // namespace fusedstep
