// Instruction sets and threads: which kernels run, and on how many threads.
#pragma once

#include <span>
#include <vector>

#include "engines/cpu/kernels.h"

namespace fusedstep {

// The instruction sets of this build that this processor runs, widest last.
const std::vector<const Kernels*>& runnable_kernels();

// The kernels in use.
const Kernels& current_kernels();
void use_kernels(const Kernels& kernels);

int num_threads();
void set_num_threads(int count);

// Update all tensors by a rule, or only the average of those without a gradient. `bytes` is the memory that the step
// reads and writes.
void run_tasks(int rule, std::span<const Task> tasks, int64_t bytes);

// The sums of the squares of the blocks of each slot's gradient, one slot after the other.
void sum_blocks(std::span<const Slot* const> slots, double* sums);

// Write the elements [begin, end) of a slot's gradient to memory, in the type of the computation.
void read_gradient(const Slot& slot, int64_t begin, int64_t end, void* to);

// Set the elements [begin, end) of a slot's gradient to +0.
void zero_grad(const Slot& slot, int64_t begin, int64_t end);

}  // namespace fusedstep
