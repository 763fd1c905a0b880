// A small pool of threads: it starts when first needed, survives fork, and never makes a caller wait for another.
#pragma once

namespace fusedstep {

// Call work(context, part) for every part in [0, parts): part 0 on the calling thread, the others on workers.
// If the pool is busy with another caller, or threads cannot be had or are late, the calling thread does what is left.
void run_parallel(int parts, void (*work)(void* context, int part), void* context);

}  // namespace fusedstep
