/* What the engine calls of OpenVINO's C interface, as its headers declare it (openvino/c/*.h of the
 * wheel, Apache-2.0). The same in 2025.4 and 2026.4; tests/test_openvino_c.py compares it with the
 * installed release. Statuses are declared as int: 0 is success. Read by cffi at build time. */

typedef struct ov_core ov_core_t;
typedef struct ov_compiled_model ov_compiled_model_t;
typedef struct ov_infer_request ov_infer_request_t;
typedef struct ov_tensor ov_tensor_t;
typedef struct ov_version {
    const char* buildNumber;
    const char* description;
} ov_version_t;

const char* ov_get_error_info(int status);
const char* ov_get_last_err_msg();
void ov_free(const char* content);

int ov_get_openvino_version(ov_version_t* version);
void ov_version_free(ov_version_t* version);

int ov_core_create(ov_core_t** core);
void ov_core_free(ov_core_t* core);
int ov_core_set_property(const ov_core_t* core, const char* device_name, ...);
int ov_core_get_property(const ov_core_t* core, const char* device_name, const char* property_key,
                         char** property_value);
int ov_core_import_model(const ov_core_t* core, const char* content, const size_t content_size,
                         const char* device_name, ov_compiled_model_t** compiled_model);

int ov_compiled_model_get_property(const ov_compiled_model_t* compiled_model,
                                   const char* property_key, char** property_value);
int ov_compiled_model_create_infer_request(const ov_compiled_model_t* compiled_model,
                                           ov_infer_request_t** infer_request);
void ov_compiled_model_free(ov_compiled_model_t* compiled_model);

int ov_infer_request_get_input_tensor(const ov_infer_request_t* infer_request,
                                      ov_tensor_t** tensor);
int ov_infer_request_get_tensor(const ov_infer_request_t* infer_request, const char* tensor_name,
                                ov_tensor_t** tensor);
int ov_infer_request_infer(ov_infer_request_t* infer_request);
void ov_infer_request_free(ov_infer_request_t* infer_request);

int ov_tensor_get_byte_size(const ov_tensor_t* tensor, size_t* byte_size);
int ov_tensor_data(const ov_tensor_t* tensor, void** data);
void ov_tensor_free(ov_tensor_t* tensor);

/* Of the system's C library: its loader, which called through cffi leaves the interpreter free
 * meanwhile, and glibc's mallopt. */
void* dlopen(const char* filename, int flags);
int mallopt(int param, int value);
