#include "binding/programs.h"

#include <limits>
#include <stdexcept>
#include <string>

#include "engines/cpu/routines.h"
#include "programs/made.h"

namespace fusedstep {
namespace {

// Copy a list into an array of a program, element by element, and return the number of elements. The items are held
// while they are read, since whoever has the list may change it.
template <size_t n, class X, class Read>
int32_t copy(const py::list& list, X (&to)[n], const char* name, Read read) {
    const py::tuple items(list);
    if (items.size() > n)
        throw py::value_error("define: " + std::string(name) + " has " + std::to_string(items.size()) +
                              " items, expected at most " + std::to_string(n));
    for (size_t i = 0; i < items.size(); ++i) to[i] = read(items[i]);
    return static_cast<int32_t>(items.size());
}

[[noreturn]] void refuse_item(py::handle item, const char* expected) {
    throw py::type_error("define: an item is of type " + std::string(Py_TYPE(item.ptr())->tp_name) + ", expected " +
                         expected);
}

double read_double(py::handle item) {
    if (PyFloat_Check(item.ptr())) return PyFloat_AS_DOUBLE(item.ptr());
    if (!PyLong_Check(item.ptr())) refuse_item(item, "a number");
    const double x = PyLong_AsDouble(item.ptr());
    if (x == -1 && PyErr_Occurred()) throw py::error_already_set();
    return x;
}

int64_t read_whole(py::handle item) {
    if (!PyLong_Check(item.ptr())) refuse_item(item, "a whole number");
    int overflow = 0;
    const long long n = PyLong_AsLongLongAndOverflow(item.ptr(), &overflow);
    return overflow ? std::numeric_limits<int64_t>::max() : n;  // which is out of every range
}

// A number of an operand or operation; one that is out of range is replaced by one that no program has.
int16_t read_operand(py::handle item) {
    const int64_t number = read_whole(item);
    return number < -kMaxRuleScalars || number >= kMaxNumbers ? std::numeric_limits<int16_t>::max()
                                                              : static_cast<int16_t>(number);
}

Operation read_operation(py::handle item) {
    if (!py::isinstance<py::tuple>(item)) refuse_item(item, "a tuple");
    const auto parts = py::reinterpret_borrow<py::tuple>(item);
    if (parts.size() != 4) throw py::value_error("define: an operation has a number and three operands");
    const int64_t op = read_whole(parts[0]);
    const bool is_known = op >= 0 && op < static_cast<int64_t>(Op::kCount);
    return {is_known ? static_cast<Op>(op) : Op::kCount,
            {read_operand(parts[1]), read_operand(parts[2]), read_operand(parts[3])}};
}

// Which of two words it is: 0 or 1.
int choice(const char* name, const std::string& word, const char* first, const char* second) {
    if (word != first && word != second)
        throw py::value_error(std::string(name) + " is " + word + ", expected " + first + " or " + second);
    return word == second;
}

std::string joined(const py::tuple& words) {
    for (py::handle word : words)
        if (!py::isinstance<py::str>(word) || PyUnicode_IsIdentifier(word.ptr()) != 1)
            throw py::value_error("define: a name is " + std::string(py::repr(word)) + ", expected an identifier");
    return py::cast<std::string>(py::str(" ").attr("join")(words));
}

}  // namespace

py::tuple operation_names() {
    py::list names;
#define NAME(Name, text, operands, result) names.append(text);
    FUSEDSTEP_OPERATIONS(NAME)
#undef NAME
    return py::tuple(names);
}

const RuleInfo& define_rule(py::str name, py::tuple states, py::tuple hypers, py::tuple memory, py::list memory_start,
                            py::list constants, py::list numbers, py::list memory_after, py::list scalars,
                            py::list elements, int update, py::list states_after) {
    Program program = {};
    Numbers& to = program.numbers;
    to.hyper_count = static_cast<int32_t>(hypers.size());
    to.memory_count = copy(memory_start, to.memory_start, "memory_start", read_double);
    to.constant_count = copy(constants, to.constants, "constants", read_double);
    to.operation_count = copy(numbers, to.operations, "numbers", read_operation);
    to.scalar_count = copy(scalars, to.scalars, "scalars", read_operand);
    const int32_t after = copy(memory_after, to.memory, "memory_after", read_operand);
    Elements& made = program.elements;
    made.operation_count = copy(elements, made.operations, "elements", read_operation);
    made.state_count = copy(states_after, made.states, "states_after", read_operand);
    made.update = read_operand(py::int_(update));
    if (after != to.memory_count) throw py::value_error("define: expected as many memories after as before an update");
    try {
        return define(name, joined(states), joined(hypers), joined(memory), program);
    } catch (const std::invalid_argument& error) {
        throw py::value_error(error.what());
    } catch (const std::length_error& error) {
        throw py::value_error("the program " + std::string(error.what()));
    }
}

py::bytes code_of_rule(int rule, const std::string& isa, const std::string& dtype, const std::string& ending) {
    const RuleInfo& info = rule_of(rule);
    if (!info.made) throw py::value_error(std::string("rule is ") + info.name + ", expected one that define has made");
    const bool is_double = choice("dtype", dtype, "float32", "float64");
    const auto code =
        code_of(*info.made, isa, is_double, static_cast<Ending>(choice("ending", ending, "param", "update")));
    return py::bytes(reinterpret_cast<const char*>(code.data()), code.size());
}

}  // namespace fusedstep
