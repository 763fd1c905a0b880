#include "binding/container.h"

namespace fusedstep {
namespace {

bool is_instance_of_abc(py::handle object, const char* abc) {
    return py::isinstance(object, py::module_::import("collections.abc").attr(abc));
}

}  // namespace

Container open_container(py::object object, const char* role) {
    if (PyDict_CheckExact(object.ptr())) return {Kind::kMapping, object};
    if (PyList_CheckExact(object.ptr()) || PyTuple_CheckExact(object.ptr())) return {Kind::kSequence, object};
    if (is_array(object)) return {Kind::kArray, object};
    if (is_instance_of_abc(object, "Mapping")) {
        py::dict items;
        for (py::handle key : object) items[key] = object[key];
        return {Kind::kMapping, items};
    }
    if (is_instance_of_abc(object, "Sequence") && !py::isinstance<py::str>(object) &&
        !py::isinstance<py::bytes>(object))
        return {Kind::kSequence, py::list(object)};
    throw py::type_error(std::string(role) + " is of type " + type_name(object) +
                         ", expected an array, or a sequence or mapping of arrays");
}

const char* kind_text(Kind kind) {
    constexpr const char* texts[] = {"one array", "a sequence", "a mapping"};
    return texts[static_cast<int>(kind)];
}

}  // namespace fusedstep
