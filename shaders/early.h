// Work ahead of the kernel before, where the host lets a kernel start before that one has ended
// (programmatic dependent launch on NVIDIA). A kernel waits at its entry, by itself, unless it
// calls inputs_wait(): then it waits there, and must have read nothing but weights, which no kernel
// writes, and written nothing. All threads must come by.
#ifndef OXB_EARLY_H
#define OXB_EARLY_H

#if defined(MSL_CUDA_H)

inline void inputs_wait() { msl_begin(); }

// Lets the next kernel start when every threadgroup has come here with `now`: it waits for the end
// of this one by itself. Of the places that a kernel offers, MSL_EARLY chooses; 0 is none.
#ifndef MSL_EARLY
#define MSL_EARLY 2u
#endif

inline void dependents_start(uint place, bool now) {
    if (now && place == MSL_EARLY) msl_let_start();
}

#else

inline void inputs_wait() {}

inline void dependents_start(uint, bool) {}

#endif

#endif
