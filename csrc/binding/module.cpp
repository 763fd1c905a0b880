// The module fusedstep._cpu: the CPU engine as Python sees it.
#include <pybind11/pybind11.h>

#include "binding/plan.h"
#include "binding/update.h"
#include "element/around.h"
#include "engines/cpu/dispatch.h"

namespace {

using namespace fusedstep;

// Rule name -> (number, names of its states, names of its hyperparameters).
py::dict list_rules() {
    py::dict rules;
    const Kernels& kernels = *runnable_kernels().front();
    auto split = [](const char* words) { return py::tuple(py::str(words).attr("split")()); };
    for (const Kernel* kernel = kernels.begin; kernel != kernels.end; ++kernel)
        rules[kernel->name] = py::make_tuple(kernel - kernels.begin, split(kernel->states),
                                             split(kernel->hypers) + split(Around::hypers));
    return rules;
}

py::tuple list_isas() {
    py::list names;
    for (const Kernels* kernels : runnable_kernels()) names.append(kernels->isa);
    return py::tuple(names);
}

void use_isa(const std::string& name) {
    for (const Kernels* kernels : runnable_kernels())
        if (name == kernels->isa) return use_kernels(*kernels);
    throw py::value_error("this processor does not run " + name);
}

int checked(int rule) {
    const Kernels& kernels = *runnable_kernels().front();
    if (rule < 0 || rule >= kernels.end - kernels.begin) throw py::index_error("no rule has this number");
    return rule;
}

}  // namespace

PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("sse4.2"))
        throw py::import_error("fusedstep needs an x86-64 processor with SSE 4.2 (x86-64-v2)");
#endif
    find_dtypes();
    m.doc() = "The CPU engine of fusedstep.";
    m.attr("version") = FUSEDSTEP_VERSION;
    m.attr("rules") = list_rules();
    m.attr("isas") = list_isas();
    m.attr("built_isas") = py::str(FUSEDSTEP_ISAS).attr("split")();
    m.attr("compiler") = FUSEDSTEP_COMPILER;
    m.attr("flags") = FUSEDSTEP_FLAGS;
    m.attr("commit") = FUSEDSTEP_COMMIT;
    m.attr("tickets") = cuda::kTickets;
    m.def("isa", [] { return current_kernels().isa; });
    m.def("use_isa", &use_isa);
    m.def("num_threads", &num_threads);
    m.def("set_num_threads", &set_num_threads);
    m.def("update", [](int rule, py::tuple arrays, py::bytes hypers, py::object t, double product) {
        return update(checked(rule), arrays, hypers, t, product);
    });

    py::class_<Ticket>(m, "Ticket")
        .def("read", &Ticket::read)
        .def_property_readonly("is_captured", &Ticket::is_captured);

    py::class_<Plan>(m, "Plan")
        .def(py::init([](int rule, py::object params) { return std::make_unique<Plan>(checked(rule), params); }))
        .def_property_readonly("keys", &Plan::keys)
        .def("check", &Plan::check)
        .def("bind", &Plan::bind)
        .def("set_hypers", &Plan::set_hypers)
        .def("run", &Plan::run)
        .def("wait", &Plan::wait)
        .def("refresh", &Plan::refresh)
        .def_property_readonly("was_captured", &Plan::was_captured);
}
