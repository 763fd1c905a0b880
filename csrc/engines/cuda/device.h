// What kernels say to the compiler and the processor, on a GPU, and on a CPU, where they are compiled to be tested.
#pragma once

#include "rules/rule.h"

namespace fusedstep::cuda {

// What is in memory is read again after this, instead of being kept in registers, which would run out.
INLINE_HOST_DEVICE void read_anew() {
    asm volatile("" ::: "memory");
}

}  // namespace fusedstep::cuda

// Where arithmetic in T flushes subnormals. On a GPU the flags of the compiler say so (-ftz=true is about float alone);
// on a CPU, the mode of the thread does.

#ifdef __CUDACC__

namespace fusedstep::cuda {

template <class T>
struct Flush {
    __device__ Flush() {}
};

}  // namespace fusedstep::cuda

#else

#include "element/float_mode.h"

namespace fusedstep::cuda {

template <class T>
class Flush : FloatMode {
public:
    Flush() { sizeof(T) == sizeof(float) ? flush() : ieee(); }
};

}  // namespace fusedstep::cuda

#endif
