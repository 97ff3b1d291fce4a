/* Compile options, with Apple's defaults, and what a compiler must be told. */
#include "sim.h"

/* Those of macOS 15, which older headers do not declare. */
enum { MATH_SAFE = 0, MATH_FAST = 2 };
enum { FUNCTIONS_FAST = 0, FUNCTIONS_PRECISE = 1 };

@implementation MTLCompileOptions
@synthesize fastMathEnabled = _fastMathEnabled, languageVersion = _languageVersion;
+ (id)allocWithZone:(NSZone *)zone {
    sim_made("MTLCompileOptions");
    return [super allocWithZone:zone];
}
- (id)init {
    self = [super init];
    _fastMathEnabled = YES;
    _mathMode = MATH_FAST; /* of language versions before 3.2 */
    _mathFloatingPointFunctions = FUNCTIONS_FAST;
    return self;
}
- (void)dealloc {
    sim_gone("MTLCompileOptions");
    [super dealloc];
}
- (BOOL)respondsToSelector:(SEL)selector {
    BOOL newer = sel_isEqual(selector, @selector(setMathMode:)) ||
                 sel_isEqual(selector, @selector(setMathFloatingPointFunctions:));
    return newer && sim_macos() < 15 ? NO : [super respondsToSelector:selector];
}
- (void)setMathMode:(NSInteger)mode {
    sim_since(15, "setMathMode");
    _mathMode = mode;
}
- (void)setMathFloatingPointFunctions:(NSInteger)functions {
    sim_since(15, "setMathFloatingPointFunctions");
    _mathFloatingPointFunctions = functions;
}
/* Kernels depend on IEEE arithmetic: infinities, NaN and the order of additions. */
- (void)simCheck {
    if (_languageVersion != MTLLanguageVersion2_4)
        sim_misuse("language version", "%lx", (unsigned long)_languageVersion);
    if (_fastMathEnabled) sim_misuse("fast math", "the default of MTLCompileOptions was left on");
    if (sim_macos() < 15) return;
    if (_mathMode != MATH_SAFE)
        sim_misuse("fast math", "mathMode is %ld, not Safe", (long)_mathMode);
    if (_mathFloatingPointFunctions != FUNCTIONS_PRECISE)
        sim_misuse("fast math", "mathFloatingPointFunctions is %ld, not Precise",
                   (long)_mathFloatingPointFunctions);
}
@end
