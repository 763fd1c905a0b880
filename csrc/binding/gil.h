// The lock of the interpreter is released during long work, so that other Python threads run.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep {

constexpr int64_t kBytesToReleaseGil = 256 << 10;  // some ten microseconds of work

// Do work that reads and writes `bytes` bytes, without the lock where that takes long.
template <class Work>
auto without_gil(int64_t bytes, Work work) {
    if (bytes < kBytesToReleaseGil) return work();
    pybind11::gil_scoped_release release;
    return work();
}

}  // namespace fusedstep
