// Where arithmetic in T flushes subnormals. On a GPU the flags of the compiler say so (-ftz=true is about float alone);
// where the kernels are compiled for a CPU, to be tested there, the mode of the thread does.
#pragma once

#ifdef __CUDACC__

namespace fusedstep::cuda {

template <class T>
struct Flush {
    __device__ Flush() {}
};

}  // namespace fusedstep::cuda

#else

#include "../cpu/float_mode.h"

namespace fusedstep::cuda {

template <class T>
class Flush : FloatMode {
public:
    Flush() { sizeof(T) == sizeof(float) ? flush() : ieee(); }
};

}  // namespace fusedstep::cuda

#endif
