from oxibonsai.metal.oxb cimport oxb_commands


cdef class RecurrentOps:
    cdef oxb_commands *recording(self) except NULL
