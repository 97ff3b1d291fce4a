from oxibonsai.metal._core cimport Device
from oxibonsai.metal.oxb cimport oxb_binding, oxb_weight


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
    # Retains weight.buffer for as long as the copy is used without the GIL.
    cdef int borrow(self, str what, oxb_weight *copy) except -1


cdef class WeightCache:
    cdef object _lock
    cdef dict _ready
    cdef dict _uploading


cdef WeightHandle weight_of(object value, str what)

# A Buffer, (Buffer, offset), or the handle of a float32 vector.
cdef int bind_vector(object value, str what, oxb_binding *binding) except -1
