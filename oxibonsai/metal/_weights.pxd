from oxibonsai.metal._core cimport Device
from oxibonsai.metal.oxb cimport oxb_binding, oxb_buffer, oxb_weight


cdef class WeightHandle:
    cdef oxb_weight weight  # owns one reference to weight.buffer; NULL once closed
    cdef readonly Device device
    cdef readonly str format
    cdef readonly object byte_len
    cdef bint raw
    cdef bint vector
    cdef object __weakref__

    # The matrix for a kernel, or an error that names the right upload.
    cdef const oxb_weight *matrix(self, str what) except NULL
    cdef oxb_buffer *vector_buffer(self, str what) except NULL
    # Retains weight.buffer for as long as the copy is used without the GIL.
    cdef int borrow(self, str what, oxb_weight *copy) except -1


cdef class WeightCache:
    cdef object _lock
    cdef dict _ready
    cdef dict _uploading
    cdef dict _waiting


cdef WeightHandle weight_of(object value, str what)

# Pairs (name, operand): a Buffer, (Buffer, offset), or the handle of a float32 vector. No Python
# code runs after the last open handle was read.
cdef int bind_all(tuple operands, oxb_binding *bindings) except -1
