// The module fusedstep._cpu: rules, plans and the engine for host memory, as Python sees them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "binding/arrays/exchange.h"
#include "binding/functional.h"
#include "binding/plan.h"
#include "binding/programs.h"
#include "binding/sums.h"
#include "engines/cpu/dispatch.h"
#include "engines/cpu/routines.h"
#include "programs/made.h"

namespace {

using namespace fusedstep;

py::tuple split(const char* words) {
    return py::tuple(py::str(words).attr("split")());
}

// What Python knows of a rule. `hypers` are the names in a row of hyperparameters, with those around every rule last.
py::object rule_type() {
    return py::module_::import("collections").attr("namedtuple")("Rule", split("id states hypers memory counts"));
}

py::object described(const py::object& type, const RuleInfo& rule) {
    return type(rule.id, split(rule.states), split(rule.hypers) + split(names_around()), split(rule.memory),
                rule.counts);
}

py::dict list_rules(const py::object& type) {
    py::dict rules;
    for (const RuleInfo& rule : rule_infos()) rules[rule.name] = described(type, rule);
    return rules;
}

// The dtypes whose numbers are computed in float32 and rounded when they are stored.
py::tuple list_narrow() {
    py::list names;
    for (int type = 0; type < kTypes; ++type)
        if (contains(kNarrow, static_cast<Type>(type))) names.append(name_of(static_cast<Type>(type)));
    return py::tuple(names);
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

// The keys of the arrays in containers of any depth, and the arrays.
py::tuple leaves(py::object params) {
    const Tree tree(params);
    std::vector<py::object> found;
    if (!tree.collect(params, found)) throw std::runtime_error("params changed while they were looked at");
    return py::make_tuple(tree.keys(), py::cast(found));
}

// Tell the libraries of the arrays in containers that these have been written to.
void tell_writes(py::object params) {
    std::vector<py::object> found, counting;
    if (!Tree(params).collect(params, found)) throw std::runtime_error("params changed while they were looked at");
    for (const py::object& array : found)
        if (counts_writes(array)) counting.push_back(array);
    count_writes(counting);
}

}  // namespace

PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
    using py::arg;
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("sse4.2"))
        throw py::import_error("fusedstep needs an x86-64 processor with SSE 4.2 (x86-64-v2)");
#endif
    ndarray_type = py::detail::npy_api::get().PyArray_Type_;
    find_dtypes();
    m.doc() = "The rules of fusedstep, its plans, and its engine for host memory.";
    m.attr("version") = FUSEDSTEP_VERSION;
    m.attr("Rule") = rule_type();
    m.attr("rules") = list_rules(m.attr("Rule"));
    m.attr("isas") = list_isas();
    m.attr("built_isas") = py::str(FUSEDSTEP_ISAS).attr("split")();
    m.attr("compiler") = FUSEDSTEP_COMPILER;
    m.attr("flags") = FUSEDSTEP_FLAGS;
    m.attr("commit") = FUSEDSTEP_COMMIT;
    m.attr("narrow") = list_narrow();
    m.attr("tickets") = kTickets;
    m.attr("max_memory") = kMaxMemory;
    m.attr("max_states") = kMaxStates;
    m.attr("max_hypers") = kMaxOwnHypers;
    m.attr("max_operations") = kMaxOperations;
    m.attr("max_constants") = kMaxConstants;
    m.attr("max_scalars") = kMaxRuleScalars;
    m.attr("operations") = operation_names();
    m.def(
        "define",
        [rules = py::dict(m.attr("rules")), type = py::object(m.attr("Rule"))](
            py::str name, py::tuple states, py::tuple hypers, py::tuple memory, py::list memory_start,
            py::list constants, py::list numbers, py::list memory_after, py::list scalars, py::list elements,
            int update, py::list states_after) {
            if (rules.contains(name)) throw py::value_error("define: there is a rule of this name already");
            rules[name] = described(type, define_rule(name, states, hypers, memory, memory_start, constants, numbers,
                                                      memory_after, scalars, elements, update, states_after));
            return py::object(rules[name]);
        },
        arg("name"), arg("states"), arg("hypers"), arg("memory"), arg("memory_start"), arg("constants"), arg("numbers"),
        arg("memory_after"), arg("scalars"), arg("elements"), arg("update"), arg("states_after"));
    m.def("leaves", &leaves, arg("params"));
    m.def("use_code", &use_code, arg("wanted"));
    m.def("uses_code", &uses_code);
    m.def("why_no_code", [] { return why_no_code(current_kernels()); });
    m.def("code_of", &code_of_rule, arg("rule"), arg("isa"), arg("dtype"), arg("ending"));
    m.def("tell_writes", &tell_writes, arg("params"));
    m.def("address_of", py::overload_cast<const py::object&>(&address_of), arg("array"));
    m.def("are_kept", &are_kept, arg("places"), arg("addresses"));
    m.def("isa", [] { return current_kernels().isa; });
    m.def("use_isa", &use_isa, arg("name"));
    m.def("num_threads", &num_threads);
    m.def("set_num_threads", &set_num_threads, arg("count"));
    m.def("sums_of_blocks", &sums_of_blocks, arg("array"), arg("param") = py::none(), arg("unit") = 1.0);
    m.def("sum_of_sums", &sum_of_sums, arg("sums"));
    m.def("sum_parts", py::overload_cast<py::list, py::object>(&sum_parts), arg("arrays"), arg("out"));
    m.def(
        "update",
        [](int rule, py::tuple arrays, py::bytes hypers, py::object t, py::tuple memory) {
            return update(rule_of(rule), arrays, hypers, t, memory);
        },
        arg("rule"), arg("arrays"), arg("hypers"), arg("t"), arg("memory"));

    py::class_<PendingFinding>(m, "PendingFinding")
        .def("read", &PendingFinding::read)
        .def_property_readonly("is_captured", &PendingFinding::is_captured);

    py::class_<Plan>(m, "Plan")
        .def(py::init([](int rule, py::object params, bool of_torch) {
                 return std::make_unique<Plan>(rule_of(rule), params, of_torch);
             }),
             arg("rule"), arg("params"), arg("of_torch") = false)
        .def_property_readonly("keys", &Plan::keys)
        .def("check", &Plan::check, arg("params"), arg("grads"), arg("averaged"))
        .def("bind", &Plan::bind, arg("kept"), arg("clocks"), arg("clock_of"), arg("noise_ids"),
             arg("origins") = py::none())
        .def("set_hypers", &Plan::set_hypers, arg("rows"), arg("row_of"), arg("skip_nonfinite"),
             arg("measures_updates"))
        .def(
            "run",
            [](Plan& plan, py::object params, py::object grads, py::object grad_scale, py::object stream,
               py::object loss_scale, py::object skip, py::object sums, py::object others) {
                return plan.run(params, grads, {grad_scale, loss_scale, skip, sums, others}, stream);
            },
            arg("params"), arg("grads"), arg("grad_scale"), arg("stream"), arg("loss_scale") = 1.0, arg("skip") = 0.0,
            arg("sums") = py::none(), arg("others") = py::none())
        .def(
            "run_and_set",
            [](Plan& plan, py::object params, py::object grads, py::object grad_scale, py::object stream,
               py::object owner, py::str name, py::object value, py::object sums, py::object others) {
                const Plan::Commitment commitment{owner, name, value};
                return plan.run(params, grads, {grad_scale, py::float_(1.0), py::float_(0.0), sums, others}, stream,
                                &commitment);
            },
            arg("params"), arg("grads"), arg("grad_scale"), arg("stream"), arg("owner"), arg("name"), arg("value"),
            arg("sums") = py::none(), arg("others") = py::none())
        .def("squares_of_updates", &Plan::squares_of_updates)
        .def("wait", &Plan::wait)
        .def("refresh", &Plan::refresh)
        .def("leave", &Plan::leave)
        .def_property_readonly("was_captured", &Plan::was_captured);
}
