/* Sources compiled by the MSL runner, in a subprocess, and its runtime. */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sim.h"

extern char **environ;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static NSMutableDictionary *programs; /* key: NSValue of the library; guarded by lock */
static sim_runtime runtime;           /* guarded by lock until it is there */

static NSString *contents_of(const char *path) {
    NSString *text = [NSString stringWithContentsOfFile:[NSString stringWithUTF8String:path]
                                               encoding:NSUTF8StringEncoding
                                                  error:NULL];
    return text != nil ? text : @"";
}

/* Run python -m msl_runner.compile; its exit status, or -1. */
static int run_compiler(NSArray *arguments, NSString *folder, NSString **out, NSString **log) {
    const char *argv[64] = {SIM_PYTHON, "-m", "msl_runner.compile"}, *env[512];
    unsigned n = 3, e = 0;
    for (NSString *argument in arguments) {
        if (n < 63) argv[n++] = [argument UTF8String];
    }
    argv[n] = NULL;
    for (char **v = environ; *v != NULL && e < 500; v++) {
        /* A sanitizer that is preloaded here is not for the compiler. */
        if (strncmp(*v, "PYTHONPATH=", 11) != 0 && strncmp(*v, "LD_PRELOAD=", 11) != 0)
            env[e++] = *v;
    }
    env[e++] = "PYTHONPATH=" SIM_TESTS;
    env[e] = NULL;
    const char *out_path =
        [[folder stringByAppendingPathComponent:@"out"] fileSystemRepresentation];
    const char *log_path =
        [[folder stringByAppendingPathComponent:@"log"] fileSystemRepresentation];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out_path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, log_path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    pid_t child;
    int status = -1;
    int failed =
        posix_spawn(&child, argv[0], &actions, NULL, (char *const *)argv, (char *const *)env);
    posix_spawn_file_actions_destroy(&actions);
    if (failed == 0) {
        while (waitpid(child, &status, 0) < 0) {
        }
    }
    *out = contents_of(out_path);
    *log = contents_of(log_path);
    return failed != 0 ? -1 : WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Compile with `arguments`, `source` after them where there is one; the lines it prints, or nil. */
static NSArray *compiler_lines(NSArray *arguments, NSString *source, NSString **log) {
    char folder[] = "/tmp/oxibonsai-sim-XXXXXX";
    if (mkdtemp(folder) == NULL) {
        *log = @"no folder for the compiler under /tmp";
        return nil;
    }
    NSString *place = [NSString stringWithUTF8String:folder], *out = nil;
    if (source != nil) {
        NSString *path = [place stringByAppendingPathComponent:@"program_source.metal"];
        [source writeToFile:path atomically:NO encoding:NSUTF8StringEncoding error:NULL];
        arguments = [arguments arrayByAddingObject:path];
    }
    int status = run_compiler(arguments, place, &out, log);
    [[NSFileManager defaultManager] removeItemAtPath:place error:NULL];
    if (status < 0) *log = @"cannot start " SIM_PYTHON;
    return status == 0 ? [out componentsSeparatedByString:@"\n"] : nil;
}

/* Where the compiler's answer to `key` is kept: to start it takes far longer than to read a file,
 * and processes by the hundred ask for the same kernels. */
static NSString *kept_path(NSString *key) {
    const char *root = getenv("OXIBONSAI_CACHE_DIR");
    uint64_t hash = 0xcbf29ce484222325;
    for (const char *c = [key UTF8String]; *c != '\0'; c++)
        hash = (hash ^ (unsigned char)*c) * 0x100000001b3;
    return [NSString stringWithFormat:@"%s/msl/sim-%016llx",
                                      root != NULL && root[0] != '\0' ? root : SIM_CACHE,
                                      (unsigned long long)hash];
}

static const char *path_after(NSString *keyword, NSArray *lines) {
    for (NSString *line in lines) {
        if ([line hasPrefix:keyword])
            return [[line substringFromIndex:[keyword length]] fileSystemRepresentation];
    }
    return "";
}

/* As compiler_lines(), or what it gave before. The key is the beginning of the file. */
static NSArray *kept_lines(NSArray *arguments, NSString *source, NSString *key, NSString **log) {
    NSString *path = kept_path(key), *begin = [key stringByAppendingString:@"\n=====\n"];
    NSString *text = contents_of([path fileSystemRepresentation]);
    if ([text hasPrefix:begin]) {
        NSArray *lines =
            [[text substringFromIndex:[begin length]] componentsSeparatedByString:@"\n"];
        if (access(path_after(@"runtime ", lines), R_OK) == 0 &&
            (source == nil || access(path_after(@"library ", lines), R_OK) == 0))
            return lines;
    }
    NSArray *lines = compiler_lines(arguments, source, log);
    if (lines != nil)[[begin stringByAppendingString:[lines componentsJoinedByString:@"\n"]]
        writeToFile:path
         atomically:YES
           encoding:NSUTF8StringEncoding
              error:NULL]
        ;
    return lines;
}

/* With lock held. */
static BOOL open_runtime(NSArray *lines, NSString **reason) {
    if (runtime.run != NULL) return YES;
    void *library = dlopen(path_after(@"runtime ", lines), RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        *reason = [NSString stringWithFormat:@"cannot load the runner: %s", dlerror()];
        return NO;
    }
    static const struct {
        const char *name;
        void *place;
    } symbols[] = {{"msl_library_open", &runtime.open},
                   {"msl_library_count", &runtime.count},
                   {"msl_library_kernel", &runtime.kernel},
                   {"msl_library_find", &runtime.find},
                   {"msl_alloc", &runtime.alloc},
                   {"msl_free", &runtime.free},
                   {"msl_run", &runtime.run}};
    for (unsigned i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (symbol == NULL) {
            *reason = [NSString stringWithFormat:@"the runner lacks %s", symbols[i].name];
            memset(&runtime, 0, sizeof runtime);
            return NO;
        }
        memcpy(symbols[i].place, &symbol, sizeof symbol);
    }
    return YES;
}

const sim_runtime *sim_load_runtime(NSString **reason) {
    pthread_mutex_lock(&lock);
    BOOL loaded = runtime.run != NULL;
    if (!loaded) {
        NSArray *lines = kept_lines([NSArray arrayWithObject:@"--runtime"], nil,
                                    @SIM_DIGEST "\n--runtime", reason);
        loaded = lines != nil && open_runtime(lines, reason);
    }
    pthread_mutex_unlock(&lock);
    return loaded ? &runtime : NULL;
}

/* With lock held. */
static const msl_library *compile(NSArray *arguments, NSString *source, NSString *key,
                                  NSString **log) {
    NSArray *lines = kept_lines(arguments, source, key, log);
    if (lines == nil || !open_runtime(lines, log)) return NULL;
    char error[1024] = "";
    const msl_library *library = runtime.open(path_after(@"library ", lines), error, sizeof error);
    if (library == NULL) *log = [NSString stringWithUTF8String:error];
    return library;
}

const msl_library *sim_compile(NSString *source, NSArray *constants, NSString *kernel,
                               NSString **log) {
    const char *mode = getenv("OXIBONSAI_METAL_SIM_MODE");
    NSMutableArray *arguments = [NSMutableArray
        arrayWithObjects:@"--version", @"2.4", @"--name", @"program_source", @"--mode", nil];
    [arguments addObject:mode != NULL ? [NSString stringWithUTF8String:mode] : @"fast"];
    if (kernel != nil)
        [arguments addObjectsFromArray:[NSArray arrayWithObjects:@"--kernel", kernel, nil]];
    for (NSString *constant in constants)
        [arguments addObjectsFromArray:[NSArray arrayWithObjects:@"--constant", constant, nil]];
    NSString *key = [NSString stringWithFormat:@"%s\n%@\n%@", SIM_DIGEST,
                                               [arguments componentsJoinedByString:@"\n"], source];
    pthread_mutex_lock(&lock);
    if (programs == nil) programs = [[NSMutableDictionary alloc] init];
    const msl_library *library = [[programs objectForKey:key] pointerValue];
    if (library == NULL) {
        library = compile(arguments, source, key, log);
        if (library != NULL) [programs setObject:[NSValue valueWithPointer:library] forKey:key];
    }
    pthread_mutex_unlock(&lock);
    return library;
}
