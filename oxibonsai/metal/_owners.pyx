"""Owners of wrapped host memory, from the wrap until the device has let go of it.

A device may let go on a thread of its own. Such a thread must not take the GIL: an interpreter that
exits ends or holds for ever each thread that asks for it, which a thread of Metal's does not
survive, and the process with it. So release_owner() puts the owner into a list, and a thread that
holds the GIL anyway decrefs it: the next call of the package that makes, submits, waits for or lets
go of something; or the main thread, which is asked to by a pending call; or the exit of the
interpreter. What is released after that stays with the process.
"""

from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdlib cimport free, malloc

import os


cdef extern from "base/handoff.h" nogil:
    ctypedef struct handoff_node:
        pass
    ctypedef struct handoff_list:
        pass
    void handoff_add(handoff_list *list, handoff_node *node)
    handoff_node *handoff_take(handoff_list *list)

cdef extern from "base/door.h" nogil:
    ctypedef struct door:
        pass
    bint door_enter(door *self)
    void door_leave(door *self)
    void door_close(door *self)
    void door_reset(door *self)

cdef extern from *:
    """
    #include "base/handoff.h"

    #include <stdatomic.h>

    /* Made when memory is wrapped, so that letting go needs no memory. */
    struct held_owner {
        handoff_node node; /* first */
        PyObject *owner; /* one reference */
    };

    static struct held_owner *held_after(struct held_owner *held) {
        return (struct held_owner *)held->node.next;
    }

    static atomic_int asked; /* whether a pending call will come */

    static int ask_first(void) { return !atomic_exchange(&asked, 1); }
    static _Thread_local int draining;

    static void ask_again(void) { (void)atomic_exchange(&asked, 0); }
    """
    cdef struct held_owner:
        handoff_node node
        PyObject *owner
    held_owner *held_after(held_owner *held) nogil
    bint ask_first() nogil
    void ask_again() nogil
    bint draining

cdef extern from "Python.h":
    int Py_AddPendingCall(int (*call)(void *) noexcept, void *context) nogil

cdef handoff_list _released
# Around Py_AddPendingCall(), which needs no GIL but an interpreter.
cdef door _interpreter


cdef void *hold_owner(object owner) except NULL:
    cdef held_owner *held = <held_owner *>malloc(sizeof(held_owner))
    if not held:
        raise MemoryError
    Py_INCREF(owner)
    held.owner = <PyObject *>owner
    return held


cdef void release_owner(void *held) noexcept nogil:
    handoff_add(&_released, &(<held_owner *>held).node)
    # Added first: the pending call takes back that it was asked for before it empties the list.
    if not door_enter(&_interpreter):
        return
    if ask_first() and Py_AddPendingCall(_drain_when_asked, NULL) != 0:
        ask_again()  # its queue is full: the next release or call sees to it
    door_leave(&_interpreter)


cdef void drain_owners() noexcept:
    global draining
    cdef held_owner *held
    cdef held_owner *after
    # An owner that goes may be what holds the next one. The call inside its end leaves that to the
    # one outside: a chain of them must not take the stack.
    if draining:
        return
    draining = True
    held = <held_owner *>handoff_take(&_released)
    while held:
        after = held_after(held)
        Py_DECREF(<object>held.owner)
        free(held)
        held = after if after else <held_owner *>handoff_take(&_released)
    draining = False


cdef int _drain_when_asked(void *unused) noexcept:
    ask_again()
    drain_owners()
    return 0


cdef void stop_asking() noexcept:
    door_close(&_interpreter)


def _after_fork():
    # The threads that asked are not in this process.
    door_reset(&_interpreter)
    ask_again()


os.register_at_fork(after_in_child=_after_fork)
