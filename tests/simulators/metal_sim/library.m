/* Libraries, functions and their constants. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

static MTLDataType type_of(const char *name) {
    static const struct {
        const char *name;
        MTLDataType type;
    } types[] = {{"bool", MTLDataTypeBool},     {"uint", MTLDataTypeUInt},
                 {"uint32_t", MTLDataTypeUInt}, {"int", MTLDataTypeInt},
                 {"int32_t", MTLDataTypeInt},   {"float", MTLDataTypeFloat}};
    for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(types[i].name, name) == 0) return types[i].type;
    }
    return 0;
}

@implementation MTLFunctionConstant
@synthesize name = _name, type = _type, index = _index, required = _required;
- (id)initWith:(const struct msl_constant *)constant {
    self = [super init];
    _name = [[NSString alloc] initWithUTF8String:constant->name];
    _type = type_of(constant->type);
    _index = constant->index;
    _required = constant->required != 0;
    return self;
}
- (void)dealloc {
    [_name release];
    [super dealloc];
}
@end

@implementation MTLFunctionConstantValues
+ (id)allocWithZone:(NSZone *)zone {
    sim_made("MTLFunctionConstantValues");
    return [super allocWithZone:zone];
}
- (id)init {
    self = [super init];
    _values = [[NSMutableDictionary alloc] init];
    return self;
}
- (void)dealloc {
    sim_gone("MTLFunctionConstantValues");
    [_values release];
    [super dealloc];
}
- (void)setConstantValue:(const void *)value type:(MTLDataType)type atIndex:(NSUInteger)index {
    NSString *text = nil;
    if (index > 65535) sim_misuse("function constant index", "%lu", (unsigned long)index);
    if (type == MTLDataTypeBool)
        text = *(const bool *)value ? @"bool=true" : @"bool=false";
    else if (type == MTLDataTypeUInt)
        text = [NSString stringWithFormat:@"uint=%u", *(const uint32_t *)value];
    else if (type == MTLDataTypeInt)
        text = [NSString stringWithFormat:@"int=%d", *(const int32_t *)value];
    else if (type == MTLDataTypeFloat)
        text = [NSString stringWithFormat:@"float=%.9g", (double)*(const float *)value];
    else
        sim_misuse("function constant of the wrong type", "MTLDataType %lu", (unsigned long)type);
    [_values setObject:text forKey:[NSNumber numberWithUnsignedLong:index]];
}
- (NSDictionary *)simValues {
    return _values;
}
@end

@implementation SimLibrary
+ (const char *)simName {
    return "MTLLibrary";
}
- (id)initWithDevice:(SimDevice *)device
              source:(NSString *)source
             program:(const msl_library *)program {
    self = [super initWithDevice:device];
    _source = [source copy];
    _program = program;
    return self;
}
- (void)dealloc {
    [_source release];
    [super dealloc];
}
- (NSArray *)functionNames {
    NSMutableArray *names = [NSMutableArray array];
    NSString *reason = nil;
    const sim_runtime *runtime = sim_load_runtime(&reason);
    for (uint32_t i = 0; i < runtime->count(_program); i++)
        [names addObject:[NSString stringWithUTF8String:runtime->kernel(_program, i)->name]];
    return names;
}
- (id<MTLFunction>)newFunctionWithName:(NSString *)name {
    NSString *reason = nil;
    if (sim_fails("newFunctionWithName", NULL)) return nil;
    if (sim_load_runtime(&reason)->find(_program, [name UTF8String]) == NULL) return nil;
    return [[SimFunction alloc] initWithDevice:_device program:_program name:name];
}
/* What is set must be what the kernel declares; other indices are ignored, as Metal does. */
- (NSArray *)settingsOf:(const struct msl_kernel *)kernel from:(NSDictionary *)values {
    NSMutableArray *settings = [NSMutableArray array];
    for (uint32_t i = 0; i < kernel->n_constants; i++) {
        const struct msl_constant *c = kernel->constants + i;
        NSString *value = [values objectForKey:[NSNumber numberWithUnsignedLong:c->index]];
        if (value == nil && c->required)
            sim_misuse("function constant unset", "%s needs constant %u (%s)", kernel->name,
                       c->index, c->name);
        if (value == nil) continue;
        NSString *type = [[value componentsSeparatedByString:@"="] objectAtIndex:0];
        if (type_of([type UTF8String]) != type_of(c->type))
            sim_misuse("function constant of the wrong type",
                       "%s declares constant %u (%s) as %s, not %s", kernel->name, c->index,
                       c->name, c->type, [type UTF8String]);
        [settings addObject:[NSString stringWithFormat:@"%u:%@", c->index, value]];
    }
    return settings;
}
- (id<MTLFunction>)newFunctionWithName:(NSString *)name
                        constantValues:(MTLFunctionConstantValues *)constantValues
                                 error:(NSError **)error {
    sim_called("specialisation");
    if (sim_fails("newFunctionWithName:constantValues", error)) return nil;
    NSString *log = nil;
    const struct msl_kernel *kernel = sim_load_runtime(&log)->find(_program, [name UTF8String]);
    const msl_library *program = NULL;
    if (kernel != NULL) {
        NSArray *settings = [self settingsOf:kernel from:[constantValues simValues]];
        program = [settings count] == 0 ? _program : sim_compile(_source, settings, name, &log);
    } else {
        log = [NSString stringWithFormat:@"no function %@", name];
    }
    if (program == NULL) {
        if (error != NULL) *error = sim_error(MTLLibraryErrorDomain, 5, log);
        return nil;
    }
    return [[SimFunction alloc] initWithDevice:_device program:program name:name];
}
@end

@implementation SimFunction
@synthesize name = _name;
+ (const char *)simName {
    return "MTLFunction";
}
- (id)initWithDevice:(SimDevice *)device
             program:(const msl_library *)program
                name:(NSString *)name {
    NSString *reason = nil;
    self = [super initWithDevice:device];
    _name = [name copy];
    _program = program;
    _kernel = sim_load_runtime(&reason)->find(program, [name UTF8String]);
    return self;
}
- (void)dealloc {
    [_name release];
    [super dealloc];
}
- (MTLFunctionType)functionType {
    return MTLFunctionTypeKernel;
}
- (NSDictionary *)functionConstantsDictionary {
    NSMutableDictionary *all = [NSMutableDictionary dictionary];
    for (uint32_t i = 0; i < _kernel->n_constants; i++) {
        MTLFunctionConstant *constant =
            [[MTLFunctionConstant alloc] initWith:_kernel->constants + i];
        [all setObject:constant forKey:[constant name]];
        [constant release];
    }
    return all;
}
@end
