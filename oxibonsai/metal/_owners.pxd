# Keep `owner` alive until release_owner() is called with what this returns.
cdef void *hold_owner(object owner) except NULL

# From any thread, which may be one of the device's: it never waits for the GIL.
cdef void release_owner(void *held) noexcept nogil

# Decref the owners that were released. What they own may run Python code of any kind, so that the
# caller holds no handle that is not retained.
cdef void drain_owners() noexcept

# At exit: ask the interpreter for nothing from here on.
cdef void stop_asking() noexcept
