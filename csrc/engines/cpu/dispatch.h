// Instruction sets and threads: which kernels run, and on how many threads.
#pragma once

#include <string_view>
#include <vector>

#include "step.h"

namespace fusedstep {

// The instruction sets of this build that this processor runs, widest last.
const std::vector<const Kernels*>& runnable_kernels();

// The kernels in use.
const Kernels& current_kernels();
void use_kernels(const Kernels& kernels);
inline const Kernel& kernel_of(int rule) {
    return current_kernels().begin[rule];
}

int num_threads();
void set_num_threads(int count);

// Update all slots with rule number `rule`. `bytes` is the memory that the step reads and writes.
void run_step(int rule, const Slot* slots, size_t count, const Derived* groups, int64_t bytes);

// The sum of the squares of each slot's gradient, in the order of norm.h.
void sum_squares(const Slot* slots, size_t count, double* sums);

// Add up the sums of several gradients, which are overwritten, in the same order.
double add_up(double* sums, size_t count);

// Set the elements [begin, end) of a slot's gradient to +0.
void zero_grad(const Slot& slot, int64_t begin, int64_t end);

// Whether a gradient has no infinity and no NaN, given the sum of its squares.
bool is_finite(const Slot& slot, double sum);

}  // namespace fusedstep
