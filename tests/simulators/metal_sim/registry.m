/* What is alive, what is to fail, and the end of a process that breaks a rule. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

#define MAX_NAMES    32u
#define MAX_FAILURES 16u
#define NEWEST_MACOS 26u

NSString *const MTLLibraryErrorDomain = @"MTLLibraryErrorDomain";
NSString *const MTLCommandBufferErrorDomain = @"MTLCommandBufferErrorDomain";
NSString *const MTLCommandBufferEncoderInfoErrorKey = @"MTLCommandBufferEncoderInfoErrorKey";
NSString *const MTLCaptureErrorDomain = @"MTLCaptureErrorDomain";

void sim_misuse(const char *rule, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "metal_sim: %s: %s\n", rule, text);
    abort();
}

static uint32_t macos = NEWEST_MACOS;

uint32_t sim_macos(void) { return macos; }

void metal_sim_set_macos(uint32_t major) { macos = major; }

void sim_since(uint32_t version, const char *call) {
    if (macos < version)
        sim_misuse("unknown selector", "macOS %u has no %s, which came with %u", macos, call,
                   version);
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Guarded by lock. Names are string constants of the classes. */
static struct {
    const char *name;
    int64_t live;
    uint64_t made;
} counts[MAX_NAMES];
static struct {
    char call[64];
    uint32_t skip, times;
    int how;
} failures[MAX_FAILURES];

static unsigned count_of(const char *name) {
    unsigned i = 0;
    while (counts[i].name != NULL && strcmp(counts[i].name, name) != 0) i++;
    if (i + 1 >= MAX_NAMES) sim_misuse("too many classes", "%s", name);
    counts[i].name = name;
    return i;
}

void sim_made(const char *name) {
    pthread_mutex_lock(&lock);
    unsigned i = count_of(name);
    counts[i].live++;
    counts[i].made++;
    pthread_mutex_unlock(&lock);
}

void sim_called(const char *name) {
    pthread_mutex_lock(&lock);
    counts[count_of(name)].made++;
    pthread_mutex_unlock(&lock);
}

void sim_gone(const char *name) {
    pthread_mutex_lock(&lock);
    counts[count_of(name)].live--;
    pthread_mutex_unlock(&lock);
}

@implementation SimCounted
+ (const char *)simName {
    return "?";
}
+ (id)allocWithZone:(NSZone *)zone {
    sim_made([self simName]);
    return [super allocWithZone:zone];
}
- (void)dealloc {
    sim_gone([[self class] simName]);
    [super dealloc];
}
@end

@implementation SimObject
@synthesize label = _label, device = _device;
- (id)initWithDevice:(SimDevice *)device {
    self = [super init];
    _device = [device retain];
    return self;
}
- (void)dealloc {
    [_label release];
    [_device release];
    [super dealloc];
}
@end

int64_t metal_sim_live(const char *name) {
    sim_drain();
    int64_t devices = sim_device_references(), total = 0;
    if (name != NULL && strcmp(name, "MTLDevice") == 0) return devices;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; counts[i].name != NULL; i++) {
        if (name == NULL || strcmp(name, counts[i].name) == 0) total += counts[i].live;
    }
    pthread_mutex_unlock(&lock);
    return name == NULL ? total + devices : total;
}

uint64_t metal_sim_made(const char *name) {
    uint64_t total = 0;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; counts[i].name != NULL; i++) {
        if (strcmp(name, counts[i].name) == 0) total += counts[i].made;
    }
    pthread_mutex_unlock(&lock);
    return total;
}

void metal_sim_live_text(char *text, uint64_t size) {
    sim_drain();
    size_t used =
        (size_t)snprintf(text, size, "MTLDevice %lld", (long long)sim_device_references());
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; counts[i].name != NULL && used < size; i++) {
        if (counts[i].live != 0)
            used += (size_t)snprintf(text + used, size - used, ", %s %lld", counts[i].name,
                                     (long long)counts[i].live);
    }
    pthread_mutex_unlock(&lock);
}

void metal_sim_fail(const char *call, uint32_t skip, uint32_t times, int how) {
    pthread_mutex_lock(&lock);
    unsigned i = 0;
    while (i < MAX_FAILURES && failures[i].times != 0) i++;
    if (i == MAX_FAILURES) sim_misuse("too many failures", "%s", call);
    snprintf(failures[i].call, sizeof failures[i].call, "%s", call);
    failures[i].skip = skip;
    failures[i].how = how;
    failures[i].times = times;
    pthread_mutex_unlock(&lock);
}

uint32_t metal_sim_pending_failures(void) {
    uint32_t n = 0;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < MAX_FAILURES; i++) n += failures[i].times;
    pthread_mutex_unlock(&lock);
    return n + sim_clock_pending();
}

NSError *sim_error(NSString *domain, NSInteger code, NSString *text) {
    NSDictionary *info = [NSDictionary dictionaryWithObject:text forKey:NSLocalizedDescriptionKey];
    return [NSError errorWithDomain:domain code:code userInfo:info];
}

BOOL sim_fails(const char *call, NSError **error) {
    int how = -1;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < MAX_FAILURES && how < 0; i++) {
        if (failures[i].times == 0 || strcmp(failures[i].call, call) != 0) continue;
        if (failures[i].skip != 0) {
            failures[i].skip--;
            break;
        }
        failures[i].times--;
        how = failures[i].how;
    }
    pthread_mutex_unlock(&lock);
    NSString *text = [NSString stringWithFormat:@"injected failure of %s", call];
    if (how == METAL_SIM_RAISE) [NSException raise:@"SimException" format:@"%@", text];
    if (how == METAL_SIM_WITH_ERROR && error != NULL)
        *error = sim_error(@"SimErrorDomain", 77, text);
    return how >= 0;
}

void metal_sim_reset(void) {
    pthread_mutex_lock(&lock);
    memset(failures, 0, sizeof failures);
    pthread_mutex_unlock(&lock);
    macos = NEWEST_MACOS;
    sim_devices_reset();
    sim_faults_reset();
    sim_worker_reset();
    sim_clock_reset();
    sim_handlers_reset();
    sim_residency_reset();
}
