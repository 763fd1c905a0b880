// Arrays of other libraries that show their memory by DLPack: by functions for C, or, in host memory, by a capsule.
#pragma once

#include "binding/arrays/view.h"
#include "engine.h"

namespace fusedstep {

// Whether a library of arrays shows its memory to C.
bool has_exchange(py::handle array);
// Whether such an array is on a GPU.
bool is_exchanged_on_gpu(const py::object& array);
// Raise BufferError for a tensor of PyTorch that requires a gradient or stands for negated or conjugated numbers.
void check_plain(const py::object& array, const Name& name, Asked asked);
Sight see_by_exchange(const py::object& array, const Name& name);
// The stream of a GPU in which a library works now.
Stream current_stream(const dlpack::Exchange& library, int device);

// Whether an array is a tensor of PyTorch, which counts what is written to it, to refuse derivatives of other numbers
// than those that were used.
bool counts_writes(py::handle array);
// Count a write to each of these tensors, except those of inference mode, which count nothing.
void count_writes(const std::vector<py::object>& tensors);

// The address of a tensor's memory, or 0 where it shows none.
uintptr_t address_of(const py::object& array);
// Whether the dicts of (dict, tensors) still have these tensors in this order and no others, and these their memory at
// the addresses, of which 0 stands for any.
bool are_kept(const py::list& places, const py::array_t<uint64_t, py::array::c_style>& addresses);

// The capsule of an array whose library has nothing but __dlpack__. The capsule keeps the memory alive.
py::object capsule_of(const py::object& array);
Sight see_capsule(const py::object& capsule, const Name& name);

}  // namespace fusedstep
