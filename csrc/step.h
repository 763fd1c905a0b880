// The calling convention between the arrays and the engines: a step is a list of slots, one per tensor,
// whose scalars stand in groups, one per set of hyperparameters and step number.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace fusedstep {

enum Type : int32_t { kFloat32, kFloat64, kTypes };

constexpr int kMaxStates = 3;
constexpr int kMaxHypers = 12;  // the rule's, then those around it
constexpr int kMaxRuleScalars = 8;
constexpr int kMaxScalars = 16;  // the rule's, then those around it
constexpr int64_t kItemSize[kTypes + 1] = {4, 8, 0};

// One tensor. A tensor without a gradient in this step has size 0.
struct Slot {
    void* param;
    const void* grad;
    void* states[kMaxStates];
    int64_t size;
    Type type;
    int32_t group;
};

// How far a tensor is. `product` is Nadam's product of its momenta so far.
struct Clock {
    int64_t t;
    double product;
};

// The scalars of an update, derived in double and rounded once.
struct Group {
    double float64[kMaxScalars];
    float float32[kMaxScalars];
    bool general;         // the loop that contains around.h
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
    int hyper_count;
    // Advance the clock by one update and derive its scalars.
    void (*derive)(const double* hyper, Clock& clock, Group& group);
    // Update the elements [begin, end) of a slot; [plain or general].
    void (*update[kTypes][2])(const Slot& slot, const Group& group, int64_t begin, int64_t end);

    // The bytes that an update of `size` elements reads and writes.
    int64_t traffic(int64_t size, Type type) const { return size * kItemSize[type] * (3 + 2 * state_count); }
};

struct Kernels {
    const char* isa;
    const Kernel* begin;
    const Kernel* end;
};

}  // namespace fusedstep
