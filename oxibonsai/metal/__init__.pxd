# `cimport oxibonsai.metal` reaches the cdef classes and the C API.
from oxibonsai.metal._buffer cimport Buffer
from oxibonsai.metal._commands cimport Commands
from oxibonsai.metal._core cimport Device
from oxibonsai.metal._graph cimport MetalGraph
from oxibonsai.metal._pipeline cimport Library, Pipeline
from oxibonsai.metal._weights cimport WeightCache, WeightHandle
