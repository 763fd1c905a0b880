#include "binding/tree.h"

#include <pybind11/critical_section.h>

#include "binding/arrays/view.h"

namespace fusedstep {
namespace {

bool is_a(py::handle object, const char* abc) {
    return py::isinstance(object, py::module_::import("collections.abc").attr(abc));
}

bool is_plain_dict(py::handle object) {
    return PyDict_CheckExact(object.ptr());
}
bool is_plain_sequence(py::handle object) {
    return PyList_CheckExact(object.ptr()) || PyTuple_CheckExact(object.ptr());
}

// Whether two keys are equal, decided without running anybody's code: for str and int only.
bool plainly_equal(py::handle a, py::handle b) {
    if (a.is(b)) return true;
    if ((PyUnicode_CheckExact(a.ptr()) && PyUnicode_CheckExact(b.ptr())) ||
        (PyLong_CheckExact(a.ptr()) && PyLong_CheckExact(b.ptr())))
        return PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ) == 1;
    return false;
}

// The fields of an instance of a dataclass, or of a named tuple, as a dict; else nothing.
py::object fields_of(py::handle object) {
    if (PyTuple_Check(object.ptr()) && offers(object, "_fields")) {
        py::dict items;
        const py::tuple names = object.attr("_fields");
        for (size_t i = 0; i < names.size(); ++i)
            items[names[i]] = py::reinterpret_borrow<py::object>(PyTuple_GetItem(object.ptr(), i));
        return items;
    }
    if (PyType_Check(object.ptr()) || !offers(object, "__dataclass_fields__")) return {};
    py::dict items;
    for (py::handle field : py::module_::import("dataclasses").attr("fields")(object)) {
        const py::object name = field.attr("name");
        items[name] = py::getattr(object, name);
    }
    return items;
}

// Take hold of an item of a dict or sequence; null counts as None.
py::object held(PyObject* item) {
    return py::reinterpret_borrow<py::object>(item ? item : Py_None);
}

py::object item_of(py::handle dict, py::handle key) {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject* found = nullptr;
    if (PyDict_GetItemRef(dict.ptr(), key.ptr(), &found) < 0) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
#else
    PyObject* found = PyDict_GetItemWithError(dict.ptr(), key.ptr());
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    return py::reinterpret_borrow<py::object>(found);
#endif
}

// A path as the key of a leaf.
py::str joined(const std::vector<py::handle>& path) {
    py::list parts;
    for (py::handle part : path) parts.append(py::str(part));
    return py::str("/").attr("join")(parts);
}

const char* text_of_kind(bool mapping) {
    return mapping ? "a mapping" : "a sequence";
}

}  // namespace

std::string Tree::name_of(const char* role, const Path& path) {
    if (path.empty()) return role;
    if (path.size() == 1) return Name{role, path[0]}.text();
    return Name{role, joined(path)}.text();
}

Tree::Items Tree::open(py::handle object, const std::string& name) {
    if (is_plain_dict(object)) return {kMapping, py::reinterpret_borrow<py::object>(object), true};
    if (is_plain_sequence(object)) return {kSequence, py::reinterpret_borrow<py::object>(object), true};
    if (is_array(object)) return {kLeaf, py::reinterpret_borrow<py::object>(object), true};
    if (py::object fields = fields_of(object)) return {kMapping, std::move(fields), true};
    if (is_a(object, "Mapping")) {
        py::dict items;
        for (py::handle key : object) items[key] = object[key];
        return {kMapping, std::move(items), false};
    }
    const bool is_text = py::isinstance<py::str>(object) || py::isinstance<py::bytes>(object);
    if (is_a(object, "Iterator"))
        throw py::type_error(name + " is of type " + type_name(object) +
                             ", which can be read only once, expected a list of its items: list(...)");
    if (is_a(object, "Set"))
        throw py::type_error(name + " is of type " + type_name(object) +
                             ", which has no order, expected a list or a mapping of arrays");
    if (!is_text && is_a(object, "Collection"))
        return {kSequence, py::list(py::reinterpret_borrow<py::object>(object)), false};
    return {kLeaf, py::reinterpret_borrow<py::object>(object), true};
}

Tree::Tree(py::handle params) {
    Path path;
    const Items items = open(params, "params");
    if (items.kind == kLeaf && !is_array(params))
        throw py::type_error("params is of type " + type_name(params) +
                             ", expected an array, or containers of arrays: dicts, lists, tuples or dataclasses");
    add(params, path);
    py::set seen;
    for (py::handle key : keys_) {
        if (seen.contains(key))
            throw py::value_error(Name{"params", key}.text() +
                                  " is the key of two parameters, expected other names of the containers around one");
        seen.add(key);
    }
}

void Tree::add_key(const Path& path) {
    if (path.empty()) return keys_.append(0);
    if (path.size() == 1) return keys_.append(path[0]);
    for (py::handle part : path)
        if (!PyUnicode_Check(part.ptr()) && !PyIndex_Check(part.ptr()))
            throw py::type_error(name_of("params", path) + " has " + type_name(part) +
                                 " as the key of a container, expected text or integers, of which a path can be made");
    keys_.append(joined(path));
}

void Tree::add(py::handle object, Path& path) {
    const Items items = open(object, name_of("params", path));
    is_plain_ = is_plain_ && items.plain;
    const size_t at = nodes_.size();
    Node node{items.kind};
    if (items.kind == kLeaf) {
        node.leaves = 1;
        node.end = at + 1;
        nodes_.push_back(node);
        return add_key(path);
    }
    nodes_.push_back(node);
    // The items are held by a list of their own: reading them may run code that changes the container.
    std::vector<std::pair<py::object, py::object>> children;
    if (items.kind == kMapping) {
        for (auto [key, value] : py::reinterpret_borrow<py::dict>(items.items))
            children.emplace_back(py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value));
        node.names = names_.size();
        for (const auto& [key, value] : children) names_.append(key);
    } else {
        for (py::handle value : items.items)
            children.emplace_back(py::int_(children.size()), py::reinterpret_borrow<py::object>(value));
    }
    if (path.size() >= 200)
        throw py::value_error("params has containers in containers, more than 200 deep, expected fewer");
    node.count = children.size();
    for (const auto& [key, value] : children) {
        const size_t child = nodes_.size();
        path.push_back(key);
        add(value, path);
        path.pop_back();
        node.leaves += nodes_[child].leaves;
    }
    node.end = nodes_.size();
    nodes_[at] = node;
}

// The items of an object where a container of a kind is expected. A plain one is taken as it is, which is quick.
Tree::Items Tree::open_as(Kind kind, py::handle object, const char* role, const Path& path) {
    if (kind == kMapping ? is_plain_dict(object) : is_plain_sequence(object))
        return {kind, py::reinterpret_borrow<py::object>(object), true};
    return open(object, name_of(role, path));
}

bool Tree::collect(size_t at, py::handle object, std::vector<py::object>& leaves) const {
    const Node& node = nodes_[at];
    const bool is_numpy = Py_TYPE(object.ptr()) == ndarray_type;
    if (node.kind == kLeaf) {
        if (!is_numpy && !is_array(object) && open(object, "params").kind != kLeaf) return false;
        leaves.push_back(py::reinterpret_borrow<py::object>(object));
        return true;
    }
    if (is_numpy) return false;
    const Items opened = open_as(node.kind, object, "params", {});
    if (opened.kind != node.kind) return false;
    PyObject* const items = opened.items.ptr();
    const py::scoped_critical_section lock(opened.items);
    size_t child = at + 1;
    const auto take = [&](PyObject* value) {
        const size_t taken = child;
        child = nodes_[taken].end;
        py::object keep = held(value);
        if (nodes_[taken].kind != kLeaf || Py_TYPE(value) != ndarray_type) return collect(taken, keep, leaves);
        leaves.push_back(std::move(keep));
        return true;
    };
    // Looking at an item may run code that changes the container, so its size is asked again for each.
    if (node.kind == kSequence) {
        const auto size = [&] { return static_cast<size_t>(PySequence_Fast_GET_SIZE(items)); };
        for (size_t i = 0; i < node.count; ++i)
            if (size() != node.count || !take(PySequence_Fast_GET_ITEM(items, i))) return false;
        return size() == node.count;
    }
    Py_ssize_t position = 0;
    PyObject *key, *value;
    for (size_t i = 0; i < node.count; ++i) {
        if (static_cast<size_t>(PyDict_GET_SIZE(items)) != node.count) return false;
        if (!PyDict_Next(items, &position, &key, &value)) return false;
        if (!plainly_equal(key, PyList_GET_ITEM(names_.ptr(), node.names + i)) || !take(value)) return false;
    }
    return static_cast<size_t>(PyDict_GET_SIZE(items)) == node.count;
}

void Tree::collect_gradients(py::handle grads, std::vector<py::object>& leaves) const {
    Path path;
    collect_gradients(0, grads, path, leaves);
}

void Tree::collect_gradients(size_t at, py::handle object, Path& path, std::vector<py::object>& leaves) const {
    const Node& node = nodes_[at];
    if (object.is_none() && !(path.empty() && node.kind != kLeaf)) {
        leaves.insert(leaves.end(), node.leaves, py::none());
        return;
    }
    if (node.kind == kLeaf) {
        leaves.push_back(py::reinterpret_borrow<py::object>(object));
        return;
    }
    const Items opened = open_as(node.kind, object, "grads", path);
    if (opened.kind != node.kind)
        throw py::type_error(name_of("grads", path) + " is " +
                             (opened.kind != kLeaf ? text_of_kind(opened.kind == kMapping)
                              : is_array(object)   ? "one array"
                                                   : "of type " + type_name(object)) +
                             ", expected " + text_of_kind(node.kind == kMapping) + " like " + name_of("params", path));
    PyObject* const items = opened.items.ptr();
    const py::scoped_critical_section lock(opened.items);
    if (node.kind == kMapping) return collect_named(node, opened.items, path, leaves);
    const auto size = static_cast<size_t>(PySequence_Fast_GET_SIZE(items));
    if (size != node.count)
        throw py::value_error(name_of("grads", path) + " has " + std::to_string(size) + " items, expected " +
                              std::to_string(node.count) + " like " + name_of("params", path));
    size_t child = at + 1;
    for (size_t i = 0; i < node.count; ++i) {
        if (static_cast<size_t>(PySequence_Fast_GET_SIZE(items)) != node.count)
            throw std::runtime_error(name_of("grads", path) + " changed while it was looked at");
        py::object value = held(PySequence_Fast_GET_ITEM(items, i));
        const size_t taken = child;
        child = nodes_[taken].end;
        if (nodes_[taken].kind == kLeaf) {
            leaves.push_back(std::move(value));
            continue;
        }
        const py::int_ key(i);
        path.push_back(key);
        collect_gradients(taken, value, path, leaves);
        path.pop_back();
    }
}

// Gradients are taken in order as long as their keys are those of the parameters, and looked up from then on.
void Tree::collect_named(const Node& node, py::handle dict, Path& path, std::vector<py::object>& leaves) const {
    const size_t at = &node - nodes_.data();
    const auto size = PyDict_GET_SIZE(dict.ptr());
    Py_ssize_t position = 0, found = 0;
    PyObject *key, *value;
    size_t child = at + 1;
    bool in_order = true;
    for (size_t i = 0; i < node.count; ++i) {
        PyObject* const name = PyList_GET_ITEM(names_.ptr(), node.names + i);
        py::object taken;
        in_order = in_order && PyDict_Next(dict.ptr(), &position, &key, &value) && plainly_equal(key, name);
        taken = in_order ? held(value) : item_of(dict, name);
        found += bool(taken);
        if (!taken) taken = py::none();
        const size_t at_item = child;
        child = nodes_[at_item].end;
        if (nodes_[at_item].kind == kLeaf) {
            leaves.push_back(std::move(taken));
            continue;
        }
        path.push_back(name);
        collect_gradients(at_item, taken, path, leaves);
        path.pop_back();
        if (PyDict_GET_SIZE(dict.ptr()) != size)
            throw std::runtime_error(name_of("grads", path) + " changed while it was looked at");
    }
    if (found == size) return;
    py::set known;
    for (size_t i = 0; i < node.count; ++i) known.add(names_[node.names + i]);
    for (py::handle name : py::list(py::reinterpret_borrow<py::object>(dict)))
        if (!known.contains(name)) {
            path.push_back(name);
            const std::string text = name_of("grads", path);
            path.pop_back();
            throw py::value_error(text + " belongs to no parameter, expected only keys of " + name_of("params", path));
        }
}

}  // namespace fusedstep
