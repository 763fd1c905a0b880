// What plans and engines tell each other of a step: a `Slot` for each tensor, a `Clock` of its updates, the types of
// its arrays. Plain data, also for code on a GPU.
#pragma once

#include "storage/types.h"

namespace fusedstep {

constexpr int kMaxStates = 4;
constexpr int kMaxMemory = 4;
constexpr int kMaxHypers = 28;       // hyperparameters of a rule, then those around it
constexpr int kMaxRuleScalars = 24;  // scalars of a rule; the scalars around it follow
constexpr int kMaxScalars = 36;

// The arrays of a tensor.
enum Role : int32_t { kParam, kGrad, kStates, kAverage = kStates + kMaxStates, kMaster, kRoles };

// The types of the arrays of a tensor. The average has the type of the states; without a master, its type is kTypes.
struct Types {
    Type param = kTypes, grad = kTypes, state = kTypes, master = kTypes;

    bool has_master() const { return master != kTypes; }
    bool operator==(const Types&) const = default;
};

// How many updates a tensor has had, and what stays of them besides arrays.
struct Clock {
    int64_t t;                  // finished updates
    int64_t averaged;           // 1 once its average has begun
    double memory[kMaxMemory];  // the numbers that the rule keeps between updates
};

constexpr int kShown = 2;  // numbers of a clock that others may see: `t`, and the first one of its memory

// An axis of a tensor, for a gradient that does not lie in memory like its parameter.
struct Axis {
    int64_t size;    // elements along the axis
    int64_t stride;  // bytes from one element of the gradient to the next one, of any sign
};

// One of the arrays of a sum, in host memory.
struct Summand {
    const void* data;
    Type type;
};

constexpr int kHost = -1;  // the device of arrays in host memory; others are numbers of GPUs

// A tensor, or a part of one: the engine updates the elements that its arrays hold.
struct Slot {
    void* arrays[kRoles] = {};
    int64_t size = 0;       // elements
    int64_t origin = 0;     // number of the first element in the whole tensor: a multiple of 1024, a block of the norm
    uint64_t noise_id = 0;  // makes the random bits of each tensor different
    Clock* clock = nullptr;
    void* shown[kShown] = {};  // where an update leaves what others see of its clock, or null
    // The axes, from the slowest to the fastest one in the parameter's memory, without those of one element, neighbours
    // joined where the gradient allows it. Null where the gradient lies in memory like its parameter.
    const Axis* grad_axes = nullptr;
    int32_t grad_axis_count = 0;
    // The arrays whose sum is the gradient, the first of which is arrays[kGrad]; all lie in memory like the parameter.
    // Null where there is one array only.
    const Summand* summands = nullptr;
    int32_t summand_count = 0;
    Types types;
    int32_t row = 0;  // the row of the table of hyperparameters
    int32_t device = kHost;
    Type shown_type = kFloat32;  // or kFloat64
    bool has_grad = false;       // in this step; without a gradient, a tensor stays as it is, but for its average
};

// The type in which a step computes.
constexpr Type computed_in(Type param) {
    return param == kFloat64 ? kFloat64 : kFloat32;
}

// Whether the loops find the elements of a gradient not where their parameter's are, or of a type that they do not
// read, or as the sum of several arrays.
inline bool is_gathered(const Slot& slot) {
    const TypeSet direct = slot.types.param == kFloat64 ? set_of(kFloat64) : kNarrow | set_of(kFloat32);
    return slot.grad_axes || slot.summands || !contains(direct, slot.types.grad);
}

// The bytes of a gradient that a step reads for each element.
inline int64_t grad_bytes(const Slot& slot) {
    int64_t bytes = slot.summands ? 0 : kItemSize[slot.types.grad];
    for (int32_t i = 0; i < slot.summand_count; ++i) bytes += kItemSize[slot.summands[i].type];
    return bytes;
}

// A hyperparameter: a value, or the address of a number, float64 or float32, on the device of the tensors.
struct Number {
    double value;
    const void* at;
    Type type = kFloat64;

    bool operator==(const Number&) const = default;
};

// What a step found out about its gradients and its updates.
struct Finding {
    double norm;         // of all gradients, unscaled; or kUnmeasured
    int64_t offender;    // the first slot whose gradient is not finite, where such a step is skipped, else kNobody
    double update_norm;  // of all that was subtracted from the parameters; or kUnmeasured
};
constexpr double kUnmeasured = -1;
constexpr int64_t kNobody = -1;  // as an unsigned number the largest, where the search for a minimum begins

// The sum of the squares of x / unit, over the elements x of a gradient. The unit is 1, or kLargeUnit where the squares
// of finite doubles overflow.
struct SquareSum {
    double sum, unit;
};
constexpr double kLargeUnit = 0x1p600;

// What surrounds the rule in a loop: each variant contains the ones before it. While arrays are in a cache, a loop that
// contains less is faster.
enum Variant : int32_t {
    kPlain,     // the rule alone
    kDecayed,   // a factor on the gradient, and weight decay
    kClipped,   // also clipping by value, L1, and bounds of the parameters
    kAveraged,  // also the average of the parameters
    kVariants
};

// The scalars of one update, derived from hyperparameters and clock in double and rounded once.
struct Derived {
    double float64[kMaxScalars];
    float float32[kMaxScalars];
    Variant variant;  // the cheapest loop with the options of the update
    bool zero_grad;   // gradients are set to +0 after they have been read
    bool stochastic;  // narrow types are rounded by random bits
    uint64_t seed;    // of the random bits
};

}  // namespace fusedstep
