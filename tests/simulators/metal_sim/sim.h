/* Shared by the files of the simulated Metal. */
#ifndef SIM_H
#define SIM_H

#import <Metal/Metal.h>

#include <stdbool.h>

#include "metal_sim.h"
#include "msl_runtime.h"

#define SIM_MAX_DEVICES   8u
#define SIM_MAX_IN_FLIGHT 64

/* registry.m */

/* Print the rule that was broken and abort: the caller's mistake, which a real Metal does not
 * forgive. */
void sim_misuse(const char *rule, const char *format, ...)
    __attribute__((noreturn, format(printf, 2, 3)));

/* Whether this call is to fail; sets *error where it fails with one, or raises. */
BOOL sim_fails(const char *call, NSError **error);
NSError *sim_error(NSString *domain, NSInteger code, NSString *text); /* +0 */

/* Counted by what sim_name gives. */
@interface SimCounted : NSObject
+ (const char *)simName;
@end

/* The major version of the system that is simulated. */
uint32_t sim_macos(void);
/* Abort where that is older than `version`: nothing answers `call` there. */
void sim_since(uint32_t version, const char *call);

void sim_made(const char *name);
/* Count a call, for metal_sim_made(). */
void sim_called(const char *name);
void sim_gone(const char *name);

/* A counted object of a device. */
@class SimDevice;
@interface SimObject : SimCounted {
    NSString *_label;
    SimDevice *_device;
}
@property (copy, atomic) NSString *label;
@property (readonly) id<MTLDevice> device;
- (id)initWithDevice:(SimDevice *)device;
@end

/* device.m */

@interface SimDevice : NSObject <MTLDevice> {
    NSUInteger _index;
    uint32_t _simdWidth;
    NSInteger _allocated;
}
@property (readonly) uint32_t simdWidth;
- (void)allocated:(NSInteger)bytes;
@end

void sim_devices_reset(void);
int64_t sim_device_references(void);
uint32_t sim_max_threads_of(const char *kernel);

/* faults.m */

void sim_faults_reset(void);
NSString *sim_with_prelude(NSString *source); /* +0 */
BOOL sim_refuses_kernel(const char *kernel);
uint32_t sim_width_of(SimDevice *device, const char *kernel);
void sim_take_compile_time(void);
BOOL sim_is_virtual(void);
uint32_t sim_max_threadgroup_memory(void);
int sim_wrap(void); /* enum metal_sim_wrap */

/* buffer.m */

@interface SimBuffer : SimObject <MTLBuffer> {
@public
    char *_memory;  /* what the device works on */
    char *_host;    /* what contents gives; of wrapped memory only */
    void *_wrapped; /* the caller's memory, or NULL */
    NSUInteger _length;
    BOOL _private;
    BOOL _fromRunner;
}
- (id)initWithDevice:(SimDevice *)device
              length:(NSUInteger)length
             options:(MTLResourceOptions)options;
- (id)initWithDevice:(SimDevice *)device wrapping:(void *)memory length:(NSUInteger)length;
@end

void sim_fill(char *to, uint8_t value, uint64_t length);

/* program.m: sources compiled by the runner, in a subprocess */

typedef struct sim_runtime {
    msl_library *(*open)(const char *, char *, size_t);
    uint32_t (*count)(const msl_library *);
    const struct msl_kernel *(*kernel)(const msl_library *, uint32_t);
    const struct msl_kernel *(*find)(const msl_library *, const char *);
    void *(*alloc)(uint64_t);
    void (*free)(void *);
    int (*run)(const msl_library *, const struct msl_kernel *, const struct msl_launch *, char *,
               size_t);
} sim_runtime;

/* nil with the reason where there is no compiler. */
const sim_runtime *sim_load_runtime(NSString **reason);
/* The library of `source`; it stays for the life of the process. `constants` holds strings
 * "INDEX:TYPE=VALUE"; `kernel` may be nil for all. NULL with the compiler's log. */
const msl_library *sim_compile(NSString *source, NSArray *constants, NSString *kernel,
                               NSString **log);

/* options.m */

@interface MTLCompileOptions (Sim)
- (void)simCheck;
@end

/* library.m */

@interface SimLibrary : SimObject <MTLLibrary> {
@public
    NSString *_source;
    const msl_library *_program;
}
- (id)initWithDevice:(SimDevice *)device
              source:(NSString *)source
             program:(const msl_library *)program;
@end

@interface SimFunction : SimObject <MTLFunction> {
@public
    NSString *_name;
    const msl_library *_program;
    const struct msl_kernel *_kernel;
}
- (id)initWithDevice:(SimDevice *)device program:(const msl_library *)program name:(NSString *)name;
@end

@interface MTLFunctionConstantValues (Sim)
- (NSDictionary *)simValues; /* index: "TYPE=VALUE" */
@end

/* pipeline.m */

@interface SimPipeline : SimObject <MTLComputePipelineState> {
@public
    const msl_library *_program;
    const struct msl_kernel *_kernel;
    uint32_t _maxThreads;
}
- (id)initWithDevice:(SimDevice *)device descriptor:(MTLComputePipelineDescriptor *)descriptor;
@end

MTLComputePipelineReflection *sim_reflection(const struct msl_kernel *kernel); /* +0 */

/* commands.m */

typedef struct sim_work {
    struct sim_work *next;
    SimPipeline *pipeline; /* nil for a copy or fill; kept by the command buffer's held objects */
    struct msl_launch launch;
    const char *from; /* NULL for a fill */
    char *to;
    uint64_t length;
    uint8_t value;
    unsigned encoder; /* its number in the command buffer */
} sim_work;

/* What a failed command buffer says of an encoder. */
@interface SimEncoderInfo : NSObject <MTLCommandBufferEncoderInfo> {
@public
    NSString *_label;
    MTLCommandEncoderErrorState _errorState;
}
@end

@class SimQueue;
@interface SimCommandBuffer : SimObject <MTLCommandBuffer> {
@public
    SimQueue *_queue;
    sim_work *_first, **_last;
    NSMutableArray *_encoders; /* SimEncoderInfo of each; nil where they are not asked for */
    NSMutableArray *_held;     /* what the work uses */
    NSMutableSet *_lent;       /* of it what others must keep; nil where references are retained */
    BOOL _encoding;
    unsigned _encoderCount;
    MTLCommandBufferStatus _status;
    NSError *_error;
    double _start, _end;
    void *_handlers[8]; /* copied blocks */
    unsigned _handlerCount;
}
- (id)initWithQueue:(SimQueue *)queue described:(BOOL)described retaining:(BOOL)retaining;
- (void)add:(sim_work)work;
- (void)hold:(id)object;
/* Of a buffer or a pipeline: others keep it where references are not retained. */
- (void)use:(id)object;
- (void)execute;
@end

@interface SimQueue : SimObject <MTLCommandQueue> {
@public
    int _inFlight;
    BOOL _ignoring; /* after an error; only the worker's thread uses it */
    NSMutableArray *_sets;
}
@end

/* residency.m */

@interface SimQueue (Residency)
/* Abort where residency is required and no set of the queue has the buffer. */
- (void)simCheckResident:(SimBuffer *)buffer;
@end

/* Whether devices are Apple's own GPUs. */
BOOL sim_is_apples(void);
uint64_t sim_working_set(void); /* 0: not set */
void sim_residency_reset(void);

/* clock.m */

#define SIM_IGNORED 4 /* MTLCommandBufferErrorAccessRevoked: submissions after an error */

typedef struct sim_run {
    double start, seconds;
    uint32_t dispatches, end_dispatch;
    int code, end_code; /* of MTLCommandBufferError; 0 for none */
    BOOL dry;
} sim_run;

sim_run sim_begin(BOOL ignored);
/* Take the time of `work`; NO where the command buffer ends there, for run->code. */
BOOL sim_step(sim_run *run, const sim_work *work);
/* Keep a record; the end on the clock. */
double sim_finish(sim_run *run, BOOL failed);
NSString *sim_reason(int code); /* +0: macOS's text */
int sim_error_code(int code);   /* of MTLCommandBufferError */
BOOL sim_failed_times(void);
void sim_clock_reset(void);
uint32_t sim_clock_pending(void);

/* worker.m: one thread runs what is committed, in that order */

void sim_enqueue(SimCommandBuffer *commands);
/* Wait until nothing is left to run, or the worker hangs. */
void sim_drain(void);
void sim_worker_reset(void);

/* handlers.m */

/* Called by the thread that is to run handlers: abort with the rule should it ever end. */
void sim_handler_thread(void);
void sim_before_handlers(void);
void sim_handlers_reset(void);

/* encoders.m */

@interface SimEncoder : SimObject <MTLCommandEncoder> {
    SimCommandBuffer *_commands;
    unsigned _number;
    BOOL _ended;
    unsigned _groups;
}
- (id)initWithCommandBuffer:(SimCommandBuffer *)commands;
- (void)check:(const char *)call;
@end

@interface SimComputeEncoder : SimEncoder <MTLComputeCommandEncoder> {
    SimPipeline *_pipeline;
    struct msl_launch _launch;
    BOOL _bytes[MSL_MAX_BUFFERS];
}
@end

@interface SimBlitEncoder : SimEncoder <MTLBlitCommandEncoder>
@end

/* capture.m */

void sim_trace(NSString *line);

#endif
