// What kernels tell compiler and processor, on a GPU and on a CPU: tests compile the kernels for a CPU.
#pragma once

#include "rules/rule.h"

namespace fusedstep::cuda {

// Make the compiler read memory again after this point. Values kept from before would use up the registers.
INLINE_HOST_DEVICE void read_anew() {
    asm volatile("" ::: "memory");
}

// The memory of a block that its launch asks for.
INLINE_HOST_DEVICE void* launched_memory() {
#ifdef __CUDA_ARCH__
    extern __shared__ __align__(16) char memory[];
#else
    alignas(16) static char memory[48 << 10];
#endif
    return memory;
}

// Conversions in which subnormal floats are numbers like others; those of the compiler flush them (-ftz=true).
INLINE_HOST_DEVICE double as_double(float x) {
#ifdef __CUDA_ARCH__
    double y;
    asm("cvt.f64.f32 %0, %1;" : "=d"(y) : "f"(x));
    return y;
#else
    return static_cast<double>(x);
#endif
}
INLINE_HOST_DEVICE float as_float(double x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("cvt.rn.f32.f64 %0, %1;" : "=f"(y) : "d"(x));
    return y;
#else
    return static_cast<float>(x);
#endif
}

}  // namespace fusedstep::cuda

// An object during whose life arithmetic in T treats subnormals as it should: float flushes them, double keeps them. On
// a GPU the treatment is decided by flags of the compiler (-ftz=true concerns float alone), on a CPU by the mode of the
// thread.

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
