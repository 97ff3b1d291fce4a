// Work ahead of the kernel before, where the host lets a kernel start before that one has ended
// (programmatic dependent launch on NVIDIA). A kernel waits at its entry, by itself, unless it
// calls inputs_wait(): then it waits there, and must have read nothing but weights, which no kernel
// writes, and written nothing. All threads must come by.
#ifndef OXB_EARLY_H
#define OXB_EARLY_H

#if defined(MSL_CUDA_H)

inline void inputs_wait() { msl_begin(); }

// Lets the next kernel start when every threadgroup has come here: it waits for the end of this
// one by itself.
inline void dependents_start() { msl_let_start(); }

#else

inline void inputs_wait() {}

inline void dependents_start() {}

#endif

#endif
