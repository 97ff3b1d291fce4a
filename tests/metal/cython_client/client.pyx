# cython: language_level=3
"""A foreign extension that uses what the package ships: pxd files, headers, the capsule."""

cimport oxibonsai.metal as metal
cimport oxibonsai.metal.oxb as oxb
from cpython.pycapsule cimport PyCapsule_Import
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from oxibonsai.metal.oxb cimport (
    OXB_ABI_VERSION,
    OXB_FILE_FORMAT_Q1_0,
    OXB_OK,
    OXB_STORAGE_SHARED,
    oxb_api,
    oxb_attention_shape,
    oxb_binding,
    oxb_buffer,
    oxb_commands,
    oxb_device,
    oxb_status,
    oxb_submission,
    oxb_weight,
)

cdef const oxb_api *api = <const oxb_api *>PyCapsule_Import("oxibonsai.metal._core._C_API", 0)

if api.abi_version != OXB_ABI_VERSION or api.struct_size < sizeof(oxb_api):
    raise ImportError("oxibonsai has another C API than this module was built for")


def describe(metal.MetalGraph graph not None, metal.Device device not None,
             metal.Buffer buffer not None):
    """Return the attributes that the pxd files declare."""
    cdef metal.Device same = graph.device
    return same is device, buffer.device is device, buffer.storage, device.driver, device.index


def takes_weight(metal.WeightHandle handle not None, metal.Commands commands not None):
    return handle.byte_len, handle.device is commands.device


def reformat(const unsigned char[::1] blocks not None):
    """Return the reformatted Q1_0 blocks and where their codes start, made without the GIL."""
    cdef uint64_t size = 0, codes_offset = 0
    cdef oxb_status status
    cdef unsigned char *out = NULL
    with nogil:
        status = api.reformat_size(OXB_FILE_FORMAT_Q1_0, blocks.shape[0], &size, &codes_offset)
        if status == OXB_OK:
            out = <unsigned char *>malloc(size)
            status = api.reformat(OXB_FILE_FORMAT_Q1_0, &blocks[0], blocks.shape[0], out)
    if status != OXB_OK:
        raise ValueError(api.last_error().decode())
    result = out[:size]
    free(out)
    return result, codes_offset


cdef oxb_status _gemv(const unsigned char *blocks, uint64_t length, uint64_t n_rows, uint64_t k,
                      const float *x, float *y) noexcept nogil:
    # Everything from the device to the result in C, freed in an order that Python would not choose.
    cdef oxb_device *device = NULL
    cdef oxb_buffer *bx = NULL
    cdef oxb_buffer *by = NULL
    cdef oxb_commands *commands = NULL
    cdef oxb_submission *submission = NULL
    cdef oxb_weight weight
    cdef oxb_binding input, output
    cdef oxb_status status
    weight.buffer = NULL
    status = api.device_open(b"cpu", 0, NULL, &device)
    if status == OXB_OK:
        status = api.weight_upload(device, OXB_FILE_FORMAT_Q1_0, blocks, length, n_rows, k, &weight)
    if status == OXB_OK:
        status = api.buffer_new(device, 4 * k, OXB_STORAGE_SHARED, &bx)
    if status == OXB_OK:
        status = api.buffer_new(device, 4 * n_rows, OXB_STORAGE_SHARED, &by)
    if status == OXB_OK:
        status = api.buffer_write(bx, 0, x, 4 * k)
    if status == OXB_OK:
        status = api.commands_new(device, &commands)
    if status == OXB_OK:
        input.buffer = bx
        output.buffer = by
        input.offset = output.offset = 0
        status = api.op_gemv(commands, &weight, n_rows, k, NULL, input, output, 1, 0, 0)
    if status == OXB_OK:
        status = api.commands_submit(commands, &submission)
    api.device_release(device)
    if status == OXB_OK:
        status = api.submission_wait(submission, -1)
    if status == OXB_OK:
        status = api.buffer_read(by, 0, y, 4 * n_rows)
    api.buffer_release(weight.buffer)
    api.buffer_release(bx)
    api.commands_release(commands)
    api.submission_release(submission)
    api.buffer_release(by)
    return status


def gemv(const unsigned char[::1] blocks not None, uint64_t n_rows, uint64_t k,
         const float[::1] x not None, float[::1] y not None):
    """Compute y = W x for the Q1_0 blocks of W, without the GIL from end to end."""
    cdef oxb_status status
    with nogil:
        status = _gemv(&blocks[0], blocks.shape[0], n_rows, k, &x[0], &y[0])
    if status != OXB_OK:
        raise ValueError(f"{<int>status}: {api.last_error().decode()}")


def rope(bint has_q_norm, bint has_k_norm, uint32_t rope_style):
    """Record qk_norm_rope of one head of two elements; return the message and the length."""
    cdef oxb_device *device = NULL
    cdef oxb_buffer *buffer = NULL
    cdef oxb_commands *commands = NULL
    cdef oxb_binding all, none
    cdef oxb_attention_shape shape
    shape.n_heads = shape.n_kv_heads = shape.max_seq = shape.n_tokens = 1
    shape.head_dim = 2
    shape.layer = shape.kv_format = shape.max_length = shape.rotary_dim = 0
    shape.rope_style = rope_style
    shape.batch = shape.page_size = 0
    shape.pages.buffer = NULL
    cdef oxb_status status = api.device_open(b"cpu", 0, NULL, &device)
    if status == OXB_OK:
        status = api.buffer_new(device, 64, OXB_STORAGE_SHARED, &buffer)
    if status == OXB_OK:
        status = api.commands_new(device, &commands)
    if status != OXB_OK:
        raise ValueError(api.last_error().decode())
    all.buffer = buffer
    none.buffer = NULL
    all.offset = none.offset = 0
    status = api.op_qk_norm_rope(commands, all, all if has_q_norm else none,
                                 all if has_k_norm else none, all, all, &shape, 1e-6)
    length = api.commands_length(commands)
    message = api.last_error().decode() if status != OXB_OK else ""
    api.commands_release(commands)
    api.buffer_release(buffer)
    api.device_release(device)
    return message, length


def drivers():
    return [api.driver_name(i).decode() for i in range(api.driver_count())]


def constants():
    """Return values and sizes that the C compiler took from the headers."""
    return {
        "PTQ1_0": oxb.OXB_FILE_FORMAT_PTQ1_0,
        "TQ2_0": oxb.OXB_FILE_FORMAT_TQ2_0,
        "Q8_0": oxb.OXB_FILE_FORMAT_Q8_0,
        "file formats": oxb.OXB_FILE_FORMAT_COUNT,
        "device format t1_g128": oxb.OXB_DEVICE_FORMAT_T1_G128,
        "device formats": oxb.OXB_DEVICE_FORMAT_COUNT,
        "sizeof(oxb_gemv_args)": sizeof(oxb.oxb_gemv_args),
        "sizeof(oxb_driver)": sizeof(oxb.oxb_driver),
    }
