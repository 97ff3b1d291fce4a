/* GNUstep includes this where blocks are on; libblocksruntime calls it Block.h. */
#include <Block.h>
