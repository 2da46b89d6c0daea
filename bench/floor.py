"""The least that a cold start can be: OpenVINO's C library, one compiled network, one inference.

python bench/floor.py cdef|made BLOB

It loads the library from the installed wheel, imports the network that `engine.backbone` left in
its cache and infers once. ``cdef`` declares the functions as a small cffi program does, at run time
with pycparser; ``made`` takes the declarations that our build generated. No NumPy, no checks.
"""

import glob
import os
import sys
from importlib.machinery import PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

CACHE_HEADER_BYTES = 13 + 32


def made():
    # An editable install keeps it apart from our sources.
    places = [f"{folder}/engine/_openvino_c.py" for folder in sys.path]
    path = next(place for place in places if os.path.exists(place))  # noqa: PTH110
    loader = SourceFileLoader("engine._openvino_c", path)
    module = module_from_spec(spec_from_loader("engine._openvino_c", loader))
    loader.exec_module(module)
    return module.ffi


def cdef():
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("""
        typedef struct ov_core ov_core_t;
        typedef struct ov_compiled_model ov_compiled_model_t;
        typedef struct ov_infer_request ov_infer_request_t;
        typedef struct ov_tensor ov_tensor_t;
        int ov_core_create(ov_core_t**);
        int ov_core_import_model(ov_core_t*, const char*, size_t, const char*,
                                 ov_compiled_model_t**);
        int ov_compiled_model_create_infer_request(ov_compiled_model_t*, ov_infer_request_t**);
        int ov_infer_request_get_input_tensor(ov_infer_request_t*, ov_tensor_t**);
        int ov_infer_request_infer(ov_infer_request_t*);
        int ov_tensor_get_byte_size(ov_tensor_t*, size_t*);
        int ov_tensor_data(ov_tensor_t*, void**);
    """)
    return ffi


ffi = {"made": made, "cdef": cdef}[sys.argv[1]]()
package = PathFinder.find_spec("openvino", sys.path).submodule_search_locations[0]
lib = ffi.dlopen(min(glob.glob(f"{package}/libs/libopenvino_c.*")))  # noqa: PTH207
with open(sys.argv[2], "rb") as stream:  # noqa: PTH123
    blob = stream.read()[CACHE_HEADER_BYTES:]


def call(name, *arguments):
    if getattr(lib, name)(*arguments):
        raise SystemExit(f"{name} failed")


core, compiled = ffi.new("ov_core_t **"), ffi.new("ov_compiled_model_t **")
request, tensor = ffi.new("ov_infer_request_t **"), ffi.new("ov_tensor_t **")
size, data = ffi.new("size_t *"), ffi.new("void **")
call("ov_core_create", core)
call("ov_core_import_model", core[0], blob, len(blob), b"CPU", compiled)
call("ov_compiled_model_create_infer_request", compiled[0], request)
call("ov_infer_request_get_input_tensor", request[0], tensor)
call("ov_tensor_get_byte_size", tensor[0], size)
call("ov_tensor_data", tensor[0], data)
ffi.memmove(data[0], bytes(range(256)) * (size[0] // 256), size[0])
call("ov_infer_request_infer", request[0])
