// Instruction sets and threads: which kernels run, and on how many threads.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engines/cpu/kernels.h"
#include "rules/info.h"

namespace fusedstep {

// The instruction sets of this build that this processor runs, widest last.
const std::vector<const Kernels*>& runnable_kernels();

// The kernels in use.
const Kernels& current_kernels();
void use_kernels(const Kernels& kernels);

int num_threads();
void set_num_threads(int count);

// The tiles in which the threads of a step collect gradients.
class Tiles {
public:
    // Have a tile of so many bytes for each thread of a step that reads and writes `traffic` bytes.
    void reserve(int64_t bytes, int64_t traffic);
    char* of(int thread) const { return first_ + thread * bytes_; }
    int threads() const { return threads_; }

private:
    std::unique_ptr<char[]> memory_;
    char* first_ = nullptr;
    int64_t bytes_ = 0, room_ = 0;  // of a tile, and in all
    int threads_ = 0;
};

// Update all tensors by a rule, or only the average of those without a gradient. The routine is that of the rule for
// the kernels, if it was made at run time, else null. `bytes` is the memory that the step reads and writes. Without
// tiles, no gradient is collected.
void run_tasks(const Kernels& kernels, const RuleInfo& rule, const Routine* routine, std::span<const Task> tasks,
               int64_t bytes, const Tiles* tiles = nullptr);

// The sums of the squares of the blocks of each slot's gradient, one slot after the other.
void sum_blocks(std::span<const Slot* const> slots, double* sums);

// The same in kLargeUnit, for one gradient of doubles whose squares overflow: infinite or NaN only if an element is.
void sum_blocks_in_large_unit(const Slot& slot, double* sums);

// Set the elements [begin, end) of a slot's gradient to +0.
void zero_grad(const Slot& slot, int64_t begin, int64_t end);

}  // namespace fusedstep
