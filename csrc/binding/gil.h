// The lock of the interpreter is released during long work, so that other Python threads run.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

namespace fusedstep {

constexpr int64_t kBytesToReleaseGil = 256 << 10;  // some ten microseconds of work

// Take the lock again. An interpreter that is shutting down ends the other threads here, by unwinding their stacks:
// through destructors, which abort the process, and past arrays whose owners are gone. Such a thread pauses until the
// process ends, as Python 3.14 lets it do by itself.
inline void take_gil(PyThreadState* thread) {
#ifdef __GLIBCXX__
    try {
        PyEval_RestoreThread(thread);
    } catch (abi::__forced_unwind&) {
        for (;;) pause();
    }
#else
    PyEval_RestoreThread(thread);
#endif
}

// Do work without the lock.
template <class Work>
void without_gil(Work work) {
    PyThreadState* const thread = PyEval_SaveThread();
    try {
        work();
    } catch (...) {
        take_gil(thread);
        throw;
    }
    take_gil(thread);
}

// Do work that reads and writes `bytes` bytes, without the lock where that takes long.
template <class Work>
void without_gil(int64_t bytes, Work work) {
    if (bytes < kBytesToReleaseGil)
        work();
    else
        without_gil(work);
}

}  // namespace fusedstep
