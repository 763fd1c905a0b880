// The calling convention between the arrays and the engines: a step is a list of slots, one per tensor,
// whose scalars stand in groups, one per set of hyperparameters and step number.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace fusedstep {

enum Type : int32_t { kFloat32, kFloat64, kTypes };

constexpr int kMaxStates = 3;
constexpr int kMaxHypers = 18;  // the rule's, then those around it
constexpr int kMaxRuleScalars = 8;
constexpr int kMaxScalars = 20;  // the rule's, then those around it
constexpr int64_t kItemSize[kTypes + 1] = {4, 8, 0};

// Which loop: the rule alone; with a factor on the gradient and decay; with all that surrounds it; with the average of
// the parameters too. The cheaper ones matter in the cache only.
enum Variant : int32_t { kPlain, kDecayed, kGeneral, kAveraged, kVariants };

// One tensor. Without a gradient in this step, its size is 0.
struct Slot {
    void* param;
    void* grad;
    void* average;
    void* states[kMaxStates];
    int64_t size;
    Type type;
    int32_t group;
    double scale;  // the factor on the gradient
};

// How far a tensor is. `product` is Nadam's product of its momenta so far; `averaged` is 1 once its average has begun.
struct Clock {
    int64_t t;
    double product;
    int64_t averaged;

    bool operator==(const Clock&) const = default;
};

// The scalars of an update, derived in double and rounded once.
struct Group {
    double float64[kMaxScalars];
    float float32[kMaxScalars];
    Variant variant;      // the least that it needs
    bool zero_grad;       // whether gradients are set to +0
    Clock before, after;  // of the tensors that this update concerns

    const double* scalars(double) const { return float64; }
    const float* scalars(float) const { return float32; }
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
    void (*derive)(const double* hyper, Clock& clock, Group& group);
    // Update the elements [begin, end) of a slot.
    void (*update[kTypes][kVariants])(const Slot& slot, const Group& group, int64_t begin, int64_t end);

    // The bytes that an update of `size` elements reads and writes.
    int64_t traffic(int64_t size, Type type) const { return size * kItemSize[type] * (3 + 2 * state_count); }
};

struct Kernels {
    const char* isa;
    const Kernel* begin;
    const Kernel* end;
    // The sums of squares of the blocks [begin, end) of an array of `size` elements; see norm.h.
    void (*square[kTypes])(const void* array, int64_t size, int64_t begin, int64_t end, double* sums);
};

}  // namespace fusedstep
