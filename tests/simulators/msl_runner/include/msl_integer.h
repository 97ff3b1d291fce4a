/* Integer functions. */
namespace metal {
/* Of a T's own width, in 64 bits. */
template <class T>
MSL_FN ulong msl_bits(T x) {
    return sizeof(T) == 8 ? ulong(x) : ulong(x) & ((1ul << (sizeof(T) * 8 % 64)) - 1);
}
template <class T>
MSL_FN MSL_INTEGER(T) popcount(T x) {
    return T(__builtin_popcountl(msl_bits(x)));
}
MSL_VECTOR_1(popcount)
template <class T>
MSL_FN MSL_INTEGER(T) clz(T x) {
    const ulong v = msl_bits(x);
    return T(v ? __builtin_clzl(v) - (64 - 8 * int(sizeof(T))) : 8 * int(sizeof(T)));
}
MSL_VECTOR_1(clz)
template <class T>
MSL_FN MSL_INTEGER(T) ctz(T x) {
    return T(x ? __builtin_ctzl(msl_bits(x)) : 8 * int(sizeof(T)));
}
MSL_VECTOR_1(ctz)
template <class T>
MSL_FN MSL_INTEGER(T) reverse_bits(T x) {
    ulong v = msl_bits(x), r = 0;
    for (uint i = 0; i < 8 * sizeof(T); i++) r |= (v >> i & 1) << (8 * sizeof(T) - 1 - i);
    return T(r);
}
template <class T>
MSL_FN MSL_INTEGER(T) rotate(T x, T n) {
    const uint width = 8 * sizeof(T), k = uint(n) % width;
    const ulong v = msl_bits(x);
    return k ? T(v << k | v >> (width - k)) : x;
}
MSL_FN uint mulhi(uint a, uint b) { return uint((ulong(a) * b) >> 32); }
MSL_FN int mulhi(int a, int b) { return int((long(a) * b) >> 32); }
MSL_FN ulong mulhi(ulong a, ulong b) { return ulong((unsigned __int128)(a)*b >> 64); }
MSL_FN int mul24(int a, int b) { return a * b; }
MSL_FN uint mul24(uint a, uint b) { return a * b; }
MSL_FN int mad24(int a, int b, int c) { return a * b + c; }
MSL_FN uint mad24(uint a, uint b, uint c) { return a * b + c; }
template <class T>
MSL_FN MSL_INTEGER(T) extract_bits(T x, uint offset, uint bits) {
    const uint width = 8 * sizeof(T);
    return bits ? T(T(x << (width - bits - offset)) >> (width - bits)) : T(0);
}
template <class T>
MSL_FN MSL_INTEGER(T) insert_bits(T base, T insert, uint offset, uint bits) {
    const ulong mask = (bits >= 64 ? ~0ul : (1ul << bits) - 1) << offset;
    return T((ulong(base) & ~mask) | ((ulong(insert) << offset) & mask));
}
template <class T>
MSL_FN MSL_INTEGER(T) absdiff(T a, T b) {
    return a > b ? a - b : b - a;
}
template <class T>
MSL_FN MSL_INTEGER(T) addsat(T a, T b) {
    T r;
    if (!__builtin_add_overflow(a, b, &r)) return r;
    return b > 0 ? numeric_limits<T>::max() : numeric_limits<T>::min();
}
template <class T>
MSL_FN MSL_INTEGER(T) subsat(T a, T b) {
    T r;
    if (!__builtin_sub_overflow(a, b, &r)) return r;
    return b > 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();
}
} /* namespace metal */
