# The C ABI of shim/include, as Cython sees it. Every function is called through the table of
# `oxb_api`: only oxibonsai.metal._core links the shim. The headers say what each name means.
#
# Written by tools/generate_pxd.py: change the headers, not this file.
from libc.stdint cimport int32_t, uint32_t, uint64_t, uint8_t


cdef extern from "oxb_formats.h" nogil:
    ctypedef enum oxb_device_format:
        OXB_DEVICE_FORMAT_Q1_G128
        OXB_DEVICE_FORMAT_Q2_G128
        OXB_DEVICE_FORMAT_Q2_G64
        OXB_DEVICE_FORMAT_F32
        OXB_DEVICE_FORMAT_F16
        OXB_DEVICE_FORMAT_BF16
        OXB_DEVICE_FORMAT_Q8_0
        OXB_DEVICE_FORMAT_T1_G128
        OXB_DEVICE_FORMAT_COUNT

    ctypedef enum oxb_file_format:
        OXB_FILE_FORMAT_Q1_0
        OXB_FILE_FORMAT_TQ2_0_G128
        OXB_FILE_FORMAT_Q2_0
        OXB_FILE_FORMAT_Q2_0_G128
        OXB_FILE_FORMAT_PQ2_0
        OXB_FILE_FORMAT_PTQ1_0
        OXB_FILE_FORMAT_TQ2_0
        OXB_FILE_FORMAT_F32
        OXB_FILE_FORMAT_F16
        OXB_FILE_FORMAT_BF16
        OXB_FILE_FORMAT_Q8_0
        OXB_FILE_FORMAT_COUNT

    ctypedef struct oxb_file_format_info:
        const char *name
        unsigned int ggml_type
        unsigned int block_weights
        unsigned int block_bytes
        unsigned int scale_offset
        oxb_device_format device_format

    ctypedef struct oxb_device_format_info:
        const char *name
        unsigned int bits
        unsigned int group_size
        unsigned int coded
        unsigned int scale_bytes
        unsigned int code_bytes


cdef extern from "oxb_shim.h" nogil:
    unsigned int OXB_ABI_VERSION
    unsigned int OXB_MAX_BINDINGS
    unsigned int OXB_MAX_ARGS_BYTES
    unsigned int OXB_MAX_IN_FLIGHT
    unsigned int OXB_MAX_CONSTANTS
    unsigned int OXB_NAME_BYTES
    unsigned int OXB_MAX_VARIANTS
    unsigned int OXB_LAYOUT_PLAIN
    unsigned int OXB_MAX_PRODUCT_COUNT
    const char *OXB_API_CAPSULE

    ctypedef enum oxb_status:
        OXB_OK
        OXB_DEVICE_NOT_FOUND
        OXB_COMPILATION_FAILED
        OXB_BUFFER_CREATION_FAILED
        OXB_ENCODING_FAILED
        OXB_EXECUTION_FAILED

    ctypedef enum oxb_storage:
        OXB_STORAGE_SHARED
        OXB_STORAGE_PRIVATE

    ctypedef struct oxb_device:
        pass

    ctypedef struct oxb_buffer:
        pass

    ctypedef struct oxb_library:
        pass

    ctypedef struct oxb_pipeline:
        pass

    ctypedef struct oxb_commands:
        pass

    ctypedef struct oxb_submission:
        pass

    ctypedef struct oxb_device_options:
        uint32_t threads
        const char *variant

    ctypedef struct oxb_size:
        uint32_t x
        uint32_t y
        uint32_t z

    ctypedef struct oxb_device_info:
        char name[128]
        char driver[16]
        char variant[32]
        uint32_t index
        uint32_t simd_width
        uint32_t unified_memory
        uint32_t threads
        uint64_t max_buffer_length
        uint64_t max_threadgroup_memory
        uint64_t recommended_working_set
        uint64_t page_size
        oxb_size max_threads
        oxb_size max_threadgroups
        char compiler[64]

    ctypedef struct oxb_device_stats:
        uint64_t buffers
        uint64_t allocated_bytes
        uint64_t in_flight
        uint64_t submissions
        double work_per_second

    ctypedef enum oxb_constant_type:
        OXB_CONSTANT_BOOL
        OXB_CONSTANT_U32
        OXB_CONSTANT_I32
        OXB_CONSTANT_F32

    ctypedef union oxb_constant_value:
        uint32_t u32
        int32_t i32
        float f32

    ctypedef struct oxb_constant:
        uint32_t index
        uint32_t type
        oxb_constant_value value

    ctypedef enum oxb_argument_kind:
        OXB_ARGUMENT_BUFFER
        OXB_ARGUMENT_STRUCT
        OXB_ARGUMENT_THREADGROUP

    ctypedef enum oxb_access:
        OXB_ACCESS_UNKNOWN
        OXB_ACCESS_READ
        OXB_ACCESS_WRITE

    ctypedef struct oxb_argument:
        uint32_t kind
        uint32_t index
        uint32_t size
        uint32_t alignment
        uint32_t access
        uint32_t optional

    ctypedef struct oxb_pipeline_info:
        uint32_t max_threads
        uint32_t simd_width
        uint64_t static_threadgroup_memory
        uint32_t n_arguments
        uint32_t pad
        oxb_argument arguments[32]

    ctypedef struct oxb_binding:
        oxb_buffer *buffer
        uint64_t offset

    ctypedef struct oxb_times:
        double start
        double end

    ctypedef struct oxb_weight:
        oxb_buffer *buffer
        uint64_t codes_offset
        uint64_t n_groups
        uint32_t device_format
        uint32_t n_rows
        uint32_t k
        uint32_t layout

    ctypedef enum oxb_activations:
        OXB_ACTIVATIONS_FLOAT32
        OXB_ACTIVATIONS_INT8
        OXB_ACTIVATIONS_HALF

    ctypedef struct oxb_product:
        const char *op
        uint32_t device_format
        uint32_t pad
        uint64_t n_rows
        uint64_t k
        uint64_t n_vectors

    ctypedef struct oxb_norm:
        oxb_binding weight
        float eps
        uint32_t pad

    ctypedef enum oxb_rope_style:
        OXB_ROPE_NEOX
        OXB_ROPE_INTERLEAVED

    ctypedef struct oxb_rotation:
        oxb_binding signs
        uint32_t block
        uint32_t head_size
        uint32_t n_groups
        uint32_t pad

    ctypedef struct oxb_feed_forward:
        const oxb_weight *attn_proj
        const oxb_weight *gate_up
        const oxb_weight *down
        oxb_binding attn
        oxb_binding hidden
        oxb_binding activated
        oxb_norm norm
        oxb_binding normed
        uint64_t attn_size
        uint64_t hidden_size
        uint64_t intermediate_size
        uint64_t n_vectors
        oxb_rotation attn_rotation
        oxb_rotation gate_up_rotation
        oxb_rotation down_rotation

    ctypedef enum oxb_kv_format:
        OXB_KV_F32
        OXB_KV_F16
        OXB_KV_Q8

    ctypedef struct oxb_attention_shape:
        uint32_t n_heads
        uint32_t n_kv_heads
        uint32_t head_dim
        uint32_t max_seq
        uint32_t layer
        uint32_t kv_format
        uint32_t n_tokens
        uint32_t batch
        uint32_t max_length
        uint32_t rotary_dim
        uint32_t rope_style
        uint32_t page_size
        uint32_t n_layers
        uint32_t n_pages
        oxb_binding pages

    ctypedef struct oxb_sample:
        oxb_binding logits
        oxb_binding settings
        oxb_binding state
        oxb_binding tokens
        oxb_binding biases
        oxb_binding masks
        oxb_binding choices
        oxb_binding best
        uint64_t n
        uint64_t n_vectors
        uint64_t max_tokens
        uint64_t n_biases
        uint64_t n_masks
        uint32_t n_slots
        uint32_t n_best
        uint32_t batch
        uint32_t log_probabilities
        uint32_t advance

    ctypedef struct oxb_recurrent_shape:
        uint64_t slot_size
        uint64_t offset
        uint32_t ring
        uint32_t n_tokens
        uint32_t batch
        uint32_t pad

    ctypedef struct oxb_conv:
        oxb_recurrent_shape shape
        oxb_binding x
        oxb_binding weight
        oxb_binding state
        oxb_binding recurrent
        oxb_binding y
        uint64_t x_stride
        uint64_t y_stride
        uint32_t n_channels
        uint32_t width

    ctypedef struct oxb_delta:
        oxb_recurrent_shape shape
        oxb_binding qkv
        oxb_binding alpha_beta
        oxb_binding a
        oxb_binding dt_bias
        oxb_binding state
        oxb_binding recurrent
        oxb_binding y
        uint64_t qkv_stride
        uint64_t ab_stride
        uint64_t y_stride
        uint32_t n_key_heads
        uint32_t n_value_heads
        uint32_t key_dim
        uint32_t value_dim
        float eps
        float scale

    ctypedef enum oxb_gate_activation:
        OXB_SIGMOID
        OXB_SILU

    ctypedef struct oxb_gate:
        oxb_binding x
        oxb_binding z
        oxb_binding y
        oxb_norm norm
        uint64_t x_stride
        uint64_t z_stride
        uint64_t y_stride
        uint64_t n_vectors
        uint32_t n_heads
        uint32_t head_dim
        uint32_t activation
        uint32_t pad

    ctypedef struct oxb_hadamard:
        oxb_binding x
        oxb_binding signs
        oxb_binding y
        oxb_norm norm
        uint64_t k
        uint64_t n_vectors
        uint32_t block
        uint32_t head_size
        uint32_t n_groups
        uint32_t inverse

    ctypedef struct oxb_api:
        uint32_t abi_version
        uint32_t struct_size
        const char *(*last_error)() noexcept nogil
        uint32_t (*driver_count)() noexcept nogil
        const char *(*driver_name)(uint32_t index) noexcept nogil
        oxb_status (*driver_load)(const char *path) noexcept nogil
        oxb_status (*device_count)(const char *driver, uint32_t *count) noexcept nogil
        oxb_status (*device_open)(
            const char *driver, uint32_t index, const oxb_device_options *options,
            oxb_device **device) noexcept nogil
        void (*device_retain)(oxb_device *device) noexcept nogil
        void (*device_release)(oxb_device *device) noexcept nogil
        void (*device_get_info)(oxb_device *device, oxb_device_info *info) noexcept nogil
        void (*device_get_stats)(oxb_device *device, oxb_device_stats *stats) noexcept nogil
        oxb_status (*buffer_new)(
            oxb_device *device, uint64_t length, oxb_storage storage,
            oxb_buffer **buffer) noexcept nogil
        oxb_status (*buffer_wrap)(
            oxb_device *device, void *host, uint64_t length, int read_only,
            void (*release)(void *), void *context, oxb_buffer **buffer) noexcept nogil
        void (*buffer_retain)(oxb_buffer *buffer) noexcept nogil
        void (*buffer_release)(oxb_buffer *buffer) noexcept nogil
        void *(*buffer_contents)(oxb_buffer *buffer) noexcept nogil
        uint64_t (*buffer_length)(oxb_buffer *buffer) noexcept nogil
        oxb_status (*buffer_read)(
            oxb_buffer *buffer, uint64_t offset, void *to, uint64_t length) noexcept nogil
        oxb_status (*buffer_write)(
            oxb_buffer *buffer, uint64_t offset, const void *from_, uint64_t length) noexcept nogil
        oxb_status (*buffer_fill)(
            oxb_buffer *buffer, uint64_t offset, uint64_t length, uint8_t value) noexcept nogil
        uint64_t (*page_size)() noexcept nogil
        oxb_status (*library_new)(
            oxb_device *device, const char *source, size_t length,
            oxb_library **library) noexcept nogil
        void (*library_retain)(oxb_library *library) noexcept nogil
        void (*library_release)(oxb_library *library) noexcept nogil
        oxb_status (*pipeline_new)(
            oxb_device *device, oxb_library *library, const char *function,
            const oxb_constant *constants, uint32_t n_constants,
            oxb_pipeline **pipeline) noexcept nogil
        void (*pipeline_get_info)(oxb_pipeline *pipeline, oxb_pipeline_info *info) noexcept nogil
        void (*pipeline_release)(oxb_pipeline *pipeline) noexcept nogil
        oxb_status (*commands_new)(oxb_device *device, oxb_commands **commands) noexcept nogil
        void (*commands_release)(oxb_commands *commands) noexcept nogil
        oxb_status (*commands_reset)(oxb_commands *commands) noexcept nogil
        uint32_t (*commands_length)(oxb_commands *commands) noexcept nogil
        oxb_status (*commands_dispatch)(
            oxb_commands *commands, oxb_pipeline *pipeline, const oxb_binding *bindings,
            uint32_t n_bindings, const void *args, uint64_t args_size, oxb_size threadgroups,
            oxb_size threads, uint32_t threadgroup_memory) noexcept nogil
        oxb_status (*commands_submit)(
            oxb_commands *commands, oxb_submission **submission) noexcept nogil
        oxb_status (*submission_wait)(oxb_submission *submission, double timeout) noexcept nogil
        int (*submission_done)(oxb_submission *submission) noexcept nogil
        oxb_status (*submission_times)(oxb_submission *submission, oxb_times *times) noexcept nogil
        void (*submission_release)(oxb_submission *submission) noexcept nogil
        oxb_status (*reformat_size)(
            oxb_file_format format, uint64_t length, uint64_t *size,
            uint64_t *codes_offset) noexcept nogil
        oxb_status (*reformat)(
            oxb_file_format format, const void *from_, uint64_t length, void *to) noexcept nogil
        oxb_status (*weight_upload)(
            oxb_device *device, oxb_file_format format, const void *from_, uint64_t length,
            uint64_t n_rows, uint64_t k, oxb_weight *weight) noexcept nogil
        oxb_status (*weight_check)(
            const oxb_weight *weight, uint64_t n_rows, uint64_t k, const char *what) noexcept nogil
        oxb_status (*op_gemv)(
            oxb_commands *commands, const oxb_weight *weight, uint64_t n_rows, uint64_t k,
            const oxb_norm *norm, oxb_binding x, oxb_binding y, uint64_t n_vectors,
            uint64_t y_stride, int residual) noexcept nogil
        oxb_status (*op_gate_up_swiglu)(
            oxb_commands *commands, const oxb_weight *weight, uint64_t n_rows, uint64_t k,
            const oxb_norm *norm, oxb_binding x, oxb_binding s, uint64_t n_vectors) noexcept nogil
        oxb_status (*op_rmsnorm)(
            oxb_commands *commands, oxb_binding x, oxb_binding weight, oxb_binding y, uint64_t n,
            uint64_t n_vectors, float eps) noexcept nogil
        oxb_status (*op_add)(
            oxb_commands *commands, oxb_binding x, oxb_binding y, uint64_t n) noexcept nogil
        oxb_status (*op_embed)(
            oxb_commands *commands, const oxb_weight *weight, uint64_t n_rows, uint64_t k,
            oxb_binding tokens, oxb_binding state, oxb_binding y, uint64_t n_tokens,
            int batch) noexcept nogil
        oxb_status (*op_qk_norm_rope)(
            oxb_commands *commands, oxb_binding qkv, oxb_binding q_norm, oxb_binding k_norm,
            oxb_binding rope, oxb_binding state, const oxb_attention_shape *shape,
            float eps) noexcept nogil
        oxb_status (*op_kv_store)(
            oxb_commands *commands, oxb_binding qkv, oxb_binding k_cache, oxb_binding v_cache,
            oxb_binding state, const oxb_attention_shape *shape) noexcept nogil
        oxb_status (*op_attention)(
            oxb_commands *commands, oxb_binding qkv, oxb_binding k_cache, oxb_binding v_cache,
            oxb_binding state, oxb_binding out, const oxb_attention_shape *shape,
            float scale) noexcept nogil
        oxb_status (*op_advance)(
            oxb_commands *commands, oxb_binding logits, oxb_binding tokens, oxb_binding state,
            uint64_t n, uint64_t max_tokens, uint64_t n_tokens, int greedy) noexcept nogil
        oxb_status (*op_qkv_to_cache)(
            oxb_commands *commands, oxb_binding qkv, oxb_binding q_norm, oxb_binding k_norm,
            oxb_binding rope, oxb_binding k_cache, oxb_binding v_cache, oxb_binding state,
            const oxb_attention_shape *shape, float eps) noexcept nogil
        oxb_status (*op_argmax)(
            oxb_commands *commands, oxb_binding logits, oxb_binding out, uint64_t n,
            uint64_t n_vectors) noexcept nogil
        oxb_status (*capture_start)(oxb_device *device, const char *path) noexcept nogil
        oxb_status (*capture_stop)(oxb_device *device) noexcept nogil
        const char *(*device_variant)(const char *driver, uint32_t index) noexcept nogil
        oxb_status (*commands_activations)(
            oxb_commands *commands, oxb_activations activations) noexcept nogil
        oxb_status (*commands_describe)(
            oxb_commands *commands, uint32_t index, char *text, uint64_t size,
            uint64_t *length) noexcept nogil
        oxb_status (*op_add_bias)(
            oxb_commands *commands, oxb_binding bias, oxb_binding y, uint64_t n,
            uint64_t n_vectors, uint64_t y_stride) noexcept nogil
        oxb_status (*op_feed_forward)(
            oxb_commands *commands, const oxb_feed_forward *f) noexcept nogil
        oxb_status (*op_sample)(oxb_commands *commands, const oxb_sample *sample) noexcept nogil
        oxb_status (*commands_deterministic)(
            oxb_commands *commands, int deterministic) noexcept nogil
        oxb_status (*device_kernel_variants)(
            oxb_device *device, const oxb_product *product, const char *names[32],
            uint32_t *n) noexcept nogil
        oxb_status (*device_choose_variant)(
            oxb_device *device, const oxb_product *product, const char *name) noexcept nogil
        int (*device_product)(
            oxb_device *device, uint32_t index, oxb_product *product, const char **chosen,
            const char **used) noexcept nogil
        oxb_status (*op_qkv_attention)(
            oxb_commands *commands, oxb_binding qkv, oxb_binding q_norm, oxb_binding k_norm,
            oxb_binding rope, oxb_binding k_cache, oxb_binding v_cache, oxb_binding state,
            oxb_binding out, const oxb_attention_shape *shape, float eps,
            float scale) noexcept nogil
        oxb_status (*op_conv)(oxb_commands *commands, const oxb_conv *conv) noexcept nogil
        oxb_status (*op_delta)(oxb_commands *commands, const oxb_delta *delta) noexcept nogil
        oxb_status (*op_gate)(oxb_commands *commands, const oxb_gate *gate) noexcept nogil
        oxb_status (*op_hadamard)(
            oxb_commands *commands, const oxb_hadamard *hadamard) noexcept nogil
        oxb_status (*op_copy)(
            oxb_commands *commands, oxb_binding x, oxb_binding y, uint64_t n) noexcept nogil


cdef extern from "oxb_args.h" nogil:
    unsigned int OXB_MAX_HEAD_DIM
    unsigned int OXB_MAX_SPLITS
    unsigned int OXB_NO_INDEX
    unsigned int OXB_ARGMAX_BLOCK
    unsigned int OXB_MAX_BEST
    unsigned int OXB_MAX_CONV_WIDTH
    unsigned int OXB_MAX_DELTA_DIM
    unsigned int OXB_GATE_SIGMOID
    unsigned int OXB_GATE_SILU
    unsigned int OXB_MIN_HADAMARD
    unsigned int OXB_MAX_HADAMARD

    ctypedef uint32_t oxb_u32

    ctypedef uint64_t oxb_u64

    ctypedef float oxb_f32

    struct oxb_gemv_args:
        oxb_u64 codes_offset
        oxb_u32 n_rows
        oxb_u32 k
        oxb_u32 column
        oxb_f32 eps
        oxb_u32 y_stride
        oxb_u32 pad

    struct oxb_gemm_args:
        oxb_u64 codes_offset
        oxb_u64 y_stride
        oxb_u32 n_rows
        oxb_u32 k
        oxb_u32 n_vectors
        oxb_u32 column

    struct oxb_rmsnorm_args:
        oxb_u32 n
        oxb_u32 n_vectors
        oxb_f32 eps
        oxb_u32 pad

    struct oxb_quantize_args:
        oxb_u32 k
        oxb_u32 n_vectors
        oxb_u32 group_size
        oxb_u32 pad

    struct oxb_halve_args:
        oxb_u32 k
        oxb_u32 n_vectors
        oxb_u32 block
        oxb_f32 eps

    struct oxb_add_args:
        oxb_u64 n
        oxb_u64 pad

    struct oxb_bias_args:
        oxb_u64 y_stride
        oxb_u32 n
        oxb_u32 n_vectors

    struct oxb_decode_state:
        oxb_u32 position
        oxb_u32 tokens
        oxb_u32 pages
        oxb_u32 recurrent

    struct oxb_embed_args:
        oxb_u64 codes_offset
        oxb_u32 n_rows
        oxb_u32 k
        oxb_u32 max_tokens
        oxb_u32 n_tokens
        oxb_u32 column
        oxb_u32 batch

    struct oxb_qk_norm_rope_args:
        oxb_u32 n_heads
        oxb_u32 n_kv_heads
        oxb_u32 head_dim
        oxb_u32 rotary_dim
        oxb_u32 interleaved
        oxb_u32 has_norm
        oxb_f32 eps
        oxb_u32 max_seq
        oxb_u32 n_tokens
        oxb_u32 batch
        oxb_u32 pad[2]

    struct oxb_cache:
        oxb_u64 page_stride
        oxb_u64 layer_offset
        oxb_u64 head_stride
        oxb_u32 page_size
        oxb_u32 n_pages
        oxb_u32 table_size
        oxb_u32 max_seq
        oxb_u32 pad[2]

    struct oxb_kv_store_args:
        oxb_cache cache
        oxb_u32 n_heads
        oxb_u32 n_kv_heads
        oxb_u32 head_dim
        oxb_u32 n_tokens
        oxb_u32 batch
        oxb_u32 pad[3]

    struct oxb_qkv_to_cache_args:
        oxb_cache cache
        oxb_u32 n_heads
        oxb_u32 n_kv_heads
        oxb_u32 head_dim
        oxb_u32 rotary_dim
        oxb_u32 interleaved
        oxb_u32 has_norm
        oxb_f32 eps
        oxb_u32 n_tokens
        oxb_u32 batch
        oxb_u32 pad[3]

    struct oxb_attention_args:
        oxb_cache cache
        oxb_u32 n_heads
        oxb_u32 n_kv_heads
        oxb_u32 head_dim
        oxb_f32 scale
        oxb_u32 n_tokens
        oxb_u32 n_splits
        oxb_u32 heads
        oxb_u32 tokens
        oxb_u32 batch
        oxb_u32 first_token
        oxb_u32 pad[2]

    struct oxb_qkv_attention_args:
        oxb_attention_args attention
        oxb_u32 rotary_dim
        oxb_u32 interleaved
        oxb_u32 has_norm
        oxb_f32 eps

    struct oxb_combine_args:
        oxb_u64 n_rows
        oxb_u32 head_dim
        oxb_u32 n_splits

    struct oxb_best:
        oxb_f32 value
        oxb_u32 index

    struct oxb_argmax_blocks_args:
        oxb_u32 n
        oxb_u32 n_vectors
        oxb_u32 n_blocks
        oxb_u32 pad

    struct oxb_argmax_args:
        oxb_u32 n_blocks
        oxb_u32 n_vectors
        oxb_u32 pad[2]

    struct oxb_advance_args:
        oxb_u32 n_blocks
        oxb_u32 max_tokens
        oxb_u32 n_tokens
        oxb_u32 pad

    struct oxb_sampling:
        oxb_u32 seed[2]
        oxb_u32 choice
        oxb_f32 scale
        oxb_u32 top_k
        oxb_u32 top_p
        oxb_u32 least
        oxb_f32 repetition
        oxb_f32 inverse_repetition
        oxb_f32 presence
        oxb_f32 frequency
        oxb_u32 window
        oxb_u32 first_bias
        oxb_u32 n_biases
        oxb_u32 mask
        oxb_u32 pad

    struct oxb_choice:
        oxb_u32 token
        oxb_u32 position
        oxb_f32 log_probability
        oxb_u32 pad

    struct oxb_scored:
        oxb_u32 token
        oxb_f32 log_probability

    struct oxb_bias:
        oxb_u32 token
        oxb_f32 value

    struct oxb_sample_args:
        oxb_u32 n
        oxb_u32 n_vectors
        oxb_u32 max_tokens
        oxb_u32 n_biases
        oxb_u32 n_masks
        oxb_u32 n_slots
        oxb_u32 n_best
        oxb_u32 n_blocks
        oxb_u32 batch
        oxb_u32 log_probabilities
        oxb_u32 advance
        oxb_u32 pad

    struct oxb_recurrence:
        oxb_u64 slot_stride
        oxb_u64 offset
        oxb_u32 n_slots
        oxb_u32 ring
        oxb_u32 n_tokens
        oxb_u32 batch

    struct oxb_conv_args:
        oxb_recurrence recurrence
        oxb_u64 x_stride
        oxb_u64 y_stride
        oxb_u32 n_channels
        oxb_u32 width
        oxb_u32 pad[2]

    struct oxb_delta_args:
        oxb_recurrence recurrence
        oxb_u64 qkv_stride
        oxb_u64 ab_stride
        oxb_u64 y_stride
        oxb_u32 n_key_heads
        oxb_u32 n_value_heads
        oxb_u32 key_dim
        oxb_u32 value_dim
        oxb_f32 eps
        oxb_f32 scale
        oxb_u32 first_head
        oxb_u32 end_head
        oxb_u32 pad[2]

    struct oxb_gate_args:
        oxb_u64 x_stride
        oxb_u64 z_stride
        oxb_u64 y_stride
        oxb_u32 n_heads
        oxb_u32 head_dim
        oxb_u32 n_tokens
        oxb_u32 activation
        oxb_f32 eps
        oxb_u32 has_norm

    struct oxb_hadamard_args:
        oxb_u32 k
        oxb_u32 n_vectors
        oxb_u32 block
        oxb_u32 head_size
        oxb_u32 n_groups
        oxb_u32 inverse
        oxb_f32 eps
        oxb_u32 has_norm

    struct oxb_copy_args:
        oxb_u64 n
        oxb_u64 pad


cdef extern from "oxb_driver.h" nogil:
    unsigned int OXB_TILE_ALL
    unsigned int OXB_TILE_CONSTANTS
    unsigned int OXB_MAX_LAYOUTS
    const char *OXB_DRIVER_ENTRY

    ctypedef struct oxb_driver_binding:
        void *buffer
        void *contents
        uint64_t offset
        uint64_t length

    ctypedef struct oxb_driver_dispatch:
        void *pipeline
        const oxb_driver_binding *bindings
        const void *args
        uint32_t n_bindings
        uint32_t args_size
        oxb_size threadgroups
        oxb_size threads
        uint32_t threadgroup_memory
        uint32_t pad
        uint64_t work

    ctypedef void (*oxb_driver_done)(
        void *context, oxb_status status, const char *message, oxb_times times) noexcept nogil

    ctypedef void oxb_reformat_blocks_fn(
        oxb_file_format format, const uint8_t *from_, uint64_t n, uint8_t *scales,
        uint8_t *codes) noexcept nogil

    ctypedef struct oxb_host:
        uint32_t abi_version
        uint32_t struct_size
        oxb_status (*fail)(oxb_status status, const char *format, ...) noexcept nogil
        const oxb_file_format_info *(*file_format)(oxb_file_format format) noexcept nogil
        const oxb_device_format_info *(*device_format)(oxb_device_format format) noexcept nogil
        oxb_reformat_blocks_fn *reformat_blocks

    ctypedef enum oxb_op:
        OXB_OP_GEMV
        OXB_OP_SWIGLU
        OXB_OP_GEMM
        OXB_OP_SWIGLU_GEMM
        OXB_OP_GEMM_INT8
        OXB_OP_QUANTIZE
        OXB_OP_EMBED
        OXB_OP_RMSNORM
        OXB_OP_ADD
        OXB_OP_BIAS
        OXB_OP_QK_NORM_ROPE
        OXB_OP_KV_STORE
        OXB_OP_QKV_TO_CACHE
        OXB_OP_ATTENTION
        OXB_OP_COMBINE
        OXB_OP_ARGMAX_BLOCKS
        OXB_OP_ARGMAX
        OXB_OP_ADVANCE
        OXB_OP_SAMPLE_BLOCKS
        OXB_OP_SAMPLE_CHOOSE
        OXB_OP_HALVE
        OXB_OP_HALVE_NORM
        OXB_OP_GEMM_HALVES
        OXB_OP_ROUND_HALF
        OXB_OP_GEMM_HALF
        OXB_OP_CONV
        OXB_OP_DELTA
        OXB_OP_GATE
        OXB_OP_HADAMARD
        OXB_OP_COPY
        OXB_OP_COUNT

    ctypedef struct oxb_op_shape:
        uint64_t extent[3]
        oxb_device_format format
        uint32_t layout
        uint64_t n_rows
        uint64_t k
        uint64_t elements
        const oxb_attention_shape *attention
        uint64_t alignment
        uint64_t out_alignment
        uint32_t halves
        uint32_t same_bits
        uint32_t makes
        uint32_t pad
        const char *variant

    ctypedef struct oxb_tile:
        uint32_t size[3]
        uint32_t threads
        const char *suffix
        const char *variant
        uint32_t column
        uint32_t splits
        uint32_t makes
        uint32_t n_constants
        oxb_constant constants[3]

    ctypedef struct oxb_abilities:
        uint32_t fused_norm
        uint32_t fused_cache_store
        uint32_t int8_products
        uint32_t gemv_vectors
        uint32_t same_bits
        uint32_t half_products
        uint32_t half_vectors
        uint32_t rounded_products
        uint32_t rounded_vectors
        uint32_t pad
        uint64_t dispatch_work

    ctypedef struct oxb_weight_layout:
        uint32_t id
        uint32_t pad
        uint64_t size
        uint64_t codes_offset

    ctypedef struct oxb_driver:
        uint32_t abi_version
        uint32_t struct_size
        const char *name
        oxb_status (*device_count)(uint32_t *count) noexcept nogil
        oxb_status (*device_open)(
            uint32_t index, const oxb_device_options *options, void **device) noexcept nogil
        void (*device_close)(void *device) noexcept nogil
        void (*device_info)(void *device, oxb_device_info *info) noexcept nogil
        oxb_status (*buffer_new)(
            void *device, uint64_t length, oxb_storage storage, void **buffer,
            void **contents) noexcept nogil
        oxb_status (*buffer_wrap)(
            void *device, void *host, uint64_t length, void **buffer) noexcept nogil
        void (*buffer_free)(void *device, void *buffer) noexcept nogil
        oxb_status (*buffer_read)(
            void *device, void *buffer, uint64_t offset, void *to, uint64_t length) noexcept nogil
        oxb_status (*buffer_write)(
            void *device, void *buffer, uint64_t offset, const void *from_,
            uint64_t length) noexcept nogil
        oxb_status (*buffer_fill)(
            void *device, void *buffer, uint64_t offset, uint64_t length,
            uint8_t value) noexcept nogil
        oxb_status (*library_new)(
            void *device, const char *source, size_t length, void **library) noexcept nogil
        void (*library_free)(void *device, void *library) noexcept nogil
        oxb_status (*pipeline_new)(
            void *device, void *library, const char *function, const oxb_constant *constants,
            uint32_t n_constants, void **pipeline, oxb_pipeline_info *info) noexcept nogil
        void (*pipeline_free)(void *device, void *pipeline) noexcept nogil
        uint64_t (*binding_bytes)(
            void *device, void *pipeline, const void *args, uint32_t index) noexcept nogil
        oxb_status (*submit)(
            void *device, const oxb_driver_dispatch *list, uint32_t n, void **replay,
            oxb_driver_done done, void *context) noexcept nogil
        void (*replay_free)(void *device, void *replay) noexcept nogil
        double (*work_rate)(void *device) noexcept nogil
        void (*abilities)(void *device, oxb_abilities *abilities) noexcept nogil
        oxb_status (*tile)(
            void *device, oxb_op op, const oxb_op_shape *shape, oxb_tile *tile) noexcept nogil
        uint32_t (*variants)(
            void *device, oxb_op op, const oxb_op_shape *shape,
            const char *names[32]) noexcept nogil
        uint64_t (*int8_vector_bytes)(
            void *device, oxb_device_format format, uint32_t layout, uint64_t k,
            uint64_t n_vectors) noexcept nogil
        uint32_t (*weight_layouts)(
            void *device, oxb_device_format format, uint64_t n_rows, uint64_t k,
            oxb_weight_layout layouts[4]) noexcept nogil
        oxb_status (*weight_pack)(
            void *device, uint32_t layout, oxb_file_format format, const void *from_,
            uint64_t n_rows, uint64_t k, void *to, int *fits) noexcept nogil
        const char *(*variant)(uint32_t index) noexcept nogil
        oxb_status (*capture_start)(void *device, const char *path) noexcept nogil
        oxb_status (*capture_stop)(void *device) noexcept nogil

    ctypedef const oxb_driver *(*oxb_driver_entry_fn)(const oxb_host *host) noexcept nogil
